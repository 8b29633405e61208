"""Tensors of samples in memory-mapped files.

A folder has ``cache.json`` (the cache's key), one file for each tensor, (rows, *shape) in C order, and
``marks.bin``, (rows, 2) int64: the source of a row plus one, and the checksum of its content. A row is
valid only if its first mark is set, which is written last: a killed run leaves no half row. The checksum is
compared when a row is first read, so a row that was lost in a power failure is written again. Processes of
one machine may share a folder: each writes whole rows.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.prefix.boundary import Slot

SPARE = 0.05
"""fraction of the free disk space that is not used"""
MARKS = "marks.bin"
ABOUT = "cache.json"


class Store:
    """Rows of the tensors that ``slots`` describe; ``dtype`` is the storage dtype of float32.

    Raises FreezeError if the disk has no room for all rows, or a file has the wrong size.
    """

    def __init__(
        self, folder: Path, slots: Sequence[Slot], rows: int, dtype: torch.dtype = torch.float32
    ) -> None:
        self.folder, self.slots, self.rows = folder, tuple(slots), rows
        self.dtypes = [dtype if slot.dtype == torch.float32 else slot.dtype for slot in self.slots]
        self.row_bytes = [
            kind.itemsize * _count(slot.shape) for slot, kind in zip(self.slots, self.dtypes, strict=True)
        ]
        self._maps: list[Tensor] = []
        self._marks = torch.empty(0, 2, dtype=torch.int64)
        self._whole: set[int] = set()
        """rows whose checksum this process has compared"""

    @property
    def nbytes(self) -> int:
        """Size of all files in bytes."""
        return self.rows * (sum(self.row_bytes) + 16)

    @property
    def filled(self) -> int:
        """Number of valid rows."""
        return int((self._marks[:, 0] != 0).sum())

    def open(self, about: dict[str, Any]) -> None:
        """Create the files that do not exist, and map them; ``about`` becomes cache.json."""
        try:
            self._make_files(about)
        except OSError as error:
            raise FreezeError(
                f"FREEZE.CACHE needs a folder in which files can be written and mapped, but {self.folder} "
                f"is not: {error}. Choose another FOLDER, or set CACHE: null."
            ) from error
        self._maps = [
            _mapped(self.folder / f"{number}.bin", dtype, (self.rows, *slot.shape))
            for number, (slot, dtype) in enumerate(zip(self.slots, self.dtypes, strict=True))
        ]
        self._marks = _mapped(self.folder / MARKS, torch.int64, (self.rows, 2))

    def _make_files(self, about: dict[str, Any]) -> None:
        sizes = {f"{number}.bin": size * self.rows for number, size in enumerate(self.row_bytes)}
        sizes[MARKS] = self.rows * 16
        self.folder.mkdir(parents=True, exist_ok=True)
        self._require_room()
        for name, size in sizes.items():
            _make_file(self.folder / name, size)
        temporary = self.folder / f"{ABOUT}.{os.getpid()}"
        temporary.write_text(json.dumps(about, indent=1, sort_keys=True) + "\n")
        os.replace(temporary, self.folder / ABOUT)

    def holds(self, row: int, source: int) -> bool:
        """Whether ``row`` is valid and was computed from ``source`` (a number below 2^62)."""
        if int(self._marks[row, 0]) != source + 1:
            return False
        if row not in self._whole and int(self._marks[row, 1]) == self._checksum(row):
            self._whole.add(row)
        return row in self._whole

    def begin(self, row: int) -> None:
        """Make ``row`` invalid until it is written and marked."""
        self._marks[row, 0] = 0
        self._whole.discard(row)

    def write(self, slot: Slot, row: int, value: Tensor) -> None:
        """Write the tensor of one sample to ``row``."""
        self._maps[self.slots.index(slot)][row].copy_(value)

    def mark(self, row: int, source: int) -> None:
        """Mark ``row`` as valid: all of its tensors are written, computed from ``source``."""
        self._marks[row, 1] = self._checksum(row)
        self._marks[row, 0] = source + 1
        self._whole.add(row)

    def read(self, slot: Slot, rows: Sequence[int], device: torch.device) -> Tensor:
        """(len(rows), *shape) on ``device``, in the dtype that the forward computed."""
        number = self.slots.index(slot)
        parts = [self._maps[number][row] for row in rows]
        shape, pin = (len(rows), *slot.shape), device.type == "cuda"
        together = torch.empty(shape, dtype=self.dtypes[number], pin_memory=pin)
        torch.stack(parts, out=together)
        return together.to(device, non_blocking=True).to(slot.dtype)

    def prefetch(self, rows: Sequence[int]) -> None:
        """Ask the system to read ``rows`` from the disk; returns at once."""
        if not hasattr(os, "posix_fadvise"):
            return
        for number, size in enumerate(self.row_bytes):
            with open(self.folder / f"{number}.bin", "rb") as file:
                for row in rows:
                    os.posix_fadvise(file.fileno(), row * size, size, os.POSIX_FADV_WILLNEED)

    def _checksum(self, row: int) -> int:
        total = 0
        for values in self._maps:
            flat = values[row].reshape(-1).view(torch.uint8)
            total = zlib.crc32(memoryview(flat.numpy()), total)  # type: ignore[arg-type]  # numpy stubs < 2
        return total

    def _require_room(self) -> None:
        there = sum(_allocated(path) for path in self.folder.glob("*.bin"))
        free = int(shutil.disk_usage(self.folder).free * (1 - SPARE))
        if self.nbytes - there > free:
            raise FreezeError(
                f"The cache must fit on the disk, but it needs {size_text(self.nbytes - there)} and "
                f"{self.folder} has {size_text(free)} free. Choose another FREEZE.CACHE.FOLDER, fewer "
                "VARIANTS or DTYPE: bfloat16, or delete the folders of other keys beside it."
            )


def size_text(count: float) -> str:
    """ "12.3 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def _count(shape: Sequence[int]) -> int:
    return torch.Size(shape).numel()


def _allocated(path: Path) -> int:
    return path.stat().st_blocks * 512


def _make_file(path: Path, size: int) -> None:
    """Create a file of ``size`` reserved bytes: writing to a map on a full disk kills the process."""
    with open(path, "ab") as file:
        found = os.fstat(file.fileno()).st_size
        if found not in (0, size):
            raise FreezeError(
                f"{path} must have {size} bytes, but has {found}: it was truncated or belongs to something "
                f"else. Delete {path.parent}; it will be filled again."
            )
        if found == size:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            os.truncate(path, size)


def _mapped(path: Path, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return torch.from_file(str(path), shared=True, size=_count(shape), dtype=dtype).view(*shape)
