"""Tensors of samples in files.

A folder has ``cache.json`` (the cache's key), ``storage.json`` (how rows are stored), one file for each
tensor, and ``marks.bin``, int64: the source of a row plus one, the checksum of its content, and where rows
are compressed, the bytes of each of its tensors. Row r of a file begins at r times the largest size of a row,
so that a row can be written again in its place. What compression saves are holes in the file, which take no
space on the disk.

A row is valid only if its first mark is set, which is written last: a killed run leaves no half row. The
checksum is compared when a row is first read, so a row that was lost in a power failure is written again.
Processes of one machine may share a folder: each writes whole rows, and a row is locked meanwhile.
"""

from __future__ import annotations

import json
import os
import weakref
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.engine.prefix_cache.compression import OVERHEAD, Compression, bytes_of, state_storage
from pcdet_freeze.engine.prefix_cache.disk import allocated, free_bytes, make_file, size_text, write_all
from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.prefix.boundary import Slot

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

MARKS = "marks.bin"
ABOUT = "cache.json"
COLUMNS = 2
"""int64 marks of a row, before the sizes of its compressed tensors"""


class Store:
    """Rows of the tensors that ``slots`` describe.

    Args:
        dtype: storage dtype of float32.
        limit: bytes that valid rows may take in all; None: no limit.
    """

    def __init__(
        self,
        folder: Path,
        slots: Sequence[Slot],
        rows: int,
        dtype: torch.dtype = torch.float32,
        compression: Compression | None = None,
        limit: int | None = None,
    ) -> None:
        self.folder, self.slots, self.rows, self.limit = folder, tuple(slots), rows, limit
        self.compression = compression or Compression()
        self.dtypes = [dtype if slot.dtype == torch.float32 else slot.dtype for slot in self.slots]
        self.row_bytes = [
            kind.itemsize * torch.Size(slot.shape).numel()
            for slot, kind in zip(self.slots, self.dtypes, strict=True)
        ]
        """bytes of a row of each file before compression"""
        self.expected_row = 0
        """bytes of a row, as far as is known before any is written"""
        self.fault = ""
        """why no more rows are written; empty if they are"""
        self._marks = torch.empty(0, COLUMNS, dtype=torch.int64)
        self._files: list[int] = []
        self._lock = -1
        self._sizes: dict[int, list[int]] = {}
        """bytes of the tensors of rows that are being written"""
        self._whole: set[int] = set()
        """rows whose checksum this process has compared"""

    @property
    def filled(self) -> int:
        """Number of valid rows."""
        return int((self._marks[:, 0] > 0).sum())

    @property
    def sizes(self) -> Tensor:
        """(filled,) int64: bytes of each valid row on the disk."""
        valid = self._marks[self._marks[:, 0] > 0]
        return (
            valid[:, COLUMNS:].sum(1) if self.compression else torch.full((len(valid),), sum(self.row_bytes))
        )

    @property
    def used(self) -> int:
        """Bytes of all valid rows."""
        return int(self.sizes.sum())

    def require_room(self, expected: int) -> None:
        """Raise FreezeError unless ``expected`` bytes of rows, or those within the limit, fit on the disk."""
        needed = self._marks_bytes + (expected if self.limit is None else min(expected, self.limit))
        needed -= sum(allocated(path) for path in self.folder.glob("*.bin"))
        free = free_bytes(self.folder)
        if needed > free:
            limit = size_text(free * 0.8).replace(",", "")
            raise FreezeError(
                f"The cache must fit on the disk, but it needs {size_text(needed)} and {self.folder} has "
                f"{size_text(free)} free. Choose another FREEZE.CACHE.FOLDER, fewer VARIANTS, DTYPE: bfloat16"
                f" or LIMIT: {limit} (other samples are computed), or delete the folders of other keys."
            )

    def open(self, about: dict[str, Any]) -> None:
        """Create the files that do not exist; ``about`` becomes cache.json.

        Raises FreezeError if a file cannot be written, or has the wrong size.
        """
        columns = self._columns
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            state_storage(self.folder, self.compression)
            make_file(self.folder / MARKS, self._marks_bytes)
            self._files = [self._opened(self.folder / f"{number}.bin") for number in range(len(self.slots))]
            self._lock = self._opened(self.folder / MARKS)
            temporary = self.folder / f"{ABOUT}.{os.getpid()}"
            temporary.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
            os.replace(temporary, self.folder / ABOUT)
        except OSError as error:
            raise FreezeError(
                f"FREEZE.CACHE needs a folder in which files can be written and mapped, but {self.folder} "
                f"is not: {error}. Choose another FOLDER, or set CACHE: null."
            ) from error
        path, count = str(self.folder / MARKS), self.rows * columns
        self._marks = torch.from_file(path, shared=True, size=count, dtype=torch.int64).view(-1, columns)

    def holds(self, row: int, source: int) -> bool:
        """Whether ``row`` is valid and was computed from ``source`` (a number below 2^62)."""
        if int(self._marks[row, 0]) != source + 1:
            return False
        if row not in self._whole and int(self._marks[row, 1]) == self._checksum(row):
            self._whole.add(row)
        return row in self._whole

    def begin(self, row: int) -> bool:
        """Make ``row`` invalid until it is written and marked.

        Returns False if it cannot be written: the limit is reached, the disk is full, or another process
        writes it now.
        """
        self._whole.discard(row)
        if self.fault or not self._may_grow() or not self._locked(row):
            return False
        self._marks[row, 0] = 0
        self._sizes[row] = [0] * len(self.slots)
        return True

    def stored_form(self, slot: Slot, value: Tensor) -> Tensor:
        """The tensor of one sample as its row holds it before compression: on the CPU, contiguous."""
        dtype = self.dtypes[self.slots.index(slot)]
        return _in_order(value.detach().cpu(), slot).to(dtype).contiguous()

    def write(self, slot: Slot, row: int, value: Tensor) -> bool:
        """Write the tensor of one sample to ``row``, after :meth:`begin`.

        Returns False if the disk is full; then no more rows are written.
        """
        number, own = self.slots.index(slot), self.stored_form(slot, value)
        data = self.compression.pack(own) if self.compression else bytes_of(own)
        try:
            write_all(self._files[number], data, row * self._pitch(number))
        except OSError as error:
            self.fault = f"{self.folder} cannot be written to: {error}"
            self.drop(row)
            return False
        self._sizes[row][number] = len(data)
        return True

    def mark(self, row: int, source: int) -> None:
        """Mark ``row`` as valid: all of its tensors are written, computed from ``source``.

        A row that is larger than expected, and would exceed the limit, stays invalid.
        """
        sizes = self._sizes.pop(row)
        if self.limit is not None and self.used + sum(sizes) > self.limit:
            return self.drop(row)
        if self.compression:
            self._marks[row, COLUMNS:] = torch.tensor(sizes)
        self._marks[row, 1] = self._checksum(row)
        self._marks[row, 0] = source + 1
        self._whole.add(row)
        self._unlock(row)

    def drop(self, row: int) -> None:
        """Leave ``row`` invalid, after :meth:`begin`."""
        self._sizes.pop(row, None)
        self._unlock(row)

    def drop_begun(self) -> None:
        """Leave all rows invalid that this process has begun and not marked: their forward did not end."""
        for row in list(self._sizes):
            self.drop(row)

    def read(self, slot: Slot, rows: Sequence[int], device: torch.device) -> Tensor:
        """(len(rows), *shape) on ``device``, in the dtype and memory format that the forward computed."""
        number, pin = self.slots.index(slot), device.type == "cuda"
        form = torch.channels_last if slot.channels_last else torch.contiguous_format
        shape, dtype = (len(rows), *slot.shape), self.dtypes[number]
        together = torch.empty(shape, dtype=dtype, pin_memory=pin, memory_format=form)
        for place, row in enumerate(rows):
            self._read_row(number, row, _in_order(together[place], slot))
        return together.to(device, non_blocking=True).to(slot.dtype)

    def rounded(self, slot: Slot, value: Tensor) -> Tensor:
        """A copy of ``value`` (B, *shape), as it would be read."""
        form = torch.channels_last if slot.channels_last else torch.contiguous_format
        stored = value.detach().to(self.dtypes[self.slots.index(slot)])
        return stored.to(slot.dtype, copy=True, memory_format=form)

    def prefetch(self, rows: Sequence[int]) -> None:
        """Ask the system to read ``rows`` from the disk; returns at once."""
        if not hasattr(os, "posix_fadvise"):
            return
        for number, file in enumerate(self._files):
            for row in rows:
                begin, size = row * self._pitch(number), self._size(number, row)
                os.posix_fadvise(file, begin, size, os.POSIX_FADV_WILLNEED)

    def _opened(self, path: Path) -> int:
        """A descriptor to read and write anywhere in a file, which is created if there is none."""
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, descriptor)
        return descriptor

    def _read_row(self, number: int, row: int, into: Tensor) -> None:
        """Read a valid row into a contiguous tensor."""
        data = self._bytes(number, row)
        try:
            if self.compression:
                self.compression.unpack(data, into)
            else:
                bytes_of(into)[:] = memoryview(data)
        except (RuntimeError, ValueError) as error:
            raise FreezeError(
                f"Row {row} of {self.folder / f'{number}.bin'} was valid, but cannot be read ({error}): "
                f"something else writes to this folder. Delete {self.folder}; it will be filled again."
            ) from error

    def _bytes(self, number: int, row: int) -> bytes:
        """What is stored of a row; shorter where the file was cut off."""
        size, begin = self._size(number, row), row * self._pitch(number)
        return os.pread(self._files[number], size, begin)

    @property
    def _columns(self) -> int:
        return COLUMNS + len(self.slots) * bool(self.compression)

    @property
    def _marks_bytes(self) -> int:
        return self.rows * self._columns * 8

    def _pitch(self, number: int) -> int:
        return self.row_bytes[number] + OVERHEAD * bool(self.compression)

    def _size(self, number: int, row: int) -> int:
        """Bytes of a row in file ``number``; a mark that was not written may have any value."""
        return int(self._marks[row, COLUMNS + number]) if self.compression else self.row_bytes[number]

    def _checksum(self, row: int) -> int:
        total = 0
        for number in range(len(self.slots)):
            if not 0 <= self._size(number, row) <= self._pitch(number):
                return -1
            total = zlib.crc32(self._bytes(number, row), total)
        return total

    def _may_grow(self) -> bool:
        """Whether one more row, as large as the largest so far, stays within the limit."""
        if self.limit is None:
            return True
        sizes = self.sizes
        largest = max(self.expected_row, int(sizes.max()) if len(sizes) else 0)
        return int(sizes.sum()) + (len(self._sizes) + 1) * largest <= self.limit

    def _locked(self, row: int) -> bool:
        if fcntl is None:
            return True
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
        except OSError:
            return False
        return True

    def _unlock(self, row: int) -> None:
        if fcntl is not None:
            fcntl.lockf(self._lock, fcntl.LOCK_UN, 1, row)


def _in_order(row: Tensor, slot: Slot) -> Tensor:
    """A view of ``row`` whose dimensions are in the order in which they are stored."""
    return row.permute(1, 2, 0) if slot.channels_last else row
