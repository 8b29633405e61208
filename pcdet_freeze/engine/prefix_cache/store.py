"""Tensors of samples in memory-mapped files.

A folder holds ``cache.json`` (what it depends on), one file for each tensor, (rows, *shape) in C order, and
``marks.bin``, (rows, 2) int64: what a row was made of, plus one, and the checksum of what it holds. A row
counts only when its first mark is set, and that is written last: a run that is cut off leaves no half row.
A checksum is compared when a row is read first, so a row that was lost with the machine's power is made anew.
Processes of one machine may share a folder: each writes whole rows, and rows are never made smaller.
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
"""part of the free disk space that is left alone"""
MARKS = "marks.bin"
ABOUT = "cache.json"


class Store:
    """Rows of the tensors that ``slots`` describe; ``dtype`` is what float32 is stored as.

    Raises FreezeError where the disk has no room for all of it, or a file is not as long as it must be.
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
        """What all files hold when they are full."""
        return self.rows * (sum(self.row_bytes) + 16)

    @property
    def filled(self) -> int:
        """Rows that are there."""
        return int((self._marks[:, 0] != 0).sum())

    def open(self, about: dict[str, Any]) -> None:
        """Make the files where they are not there yet, and map them; ``about`` becomes cache.json."""
        try:
            self._make_files(about)
        except OSError as error:
            raise FreezeError(
                f"FREEZE.CACHE needs a folder to write to and to map files of, but {self.folder} is none: "
                f"{error}. Choose another FOLDER, or set CACHE: null."
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
        """Whether ``row`` is there, whole, and made of ``source`` (a number below 2^62)."""
        if int(self._marks[row, 0]) != source + 1:
            return False
        if row not in self._whole and int(self._marks[row, 1]) == self._checksum(row):
            self._whole.add(row)
        return row in self._whole

    def begin(self, row: int) -> None:
        """``row`` is about to be written: until it is marked, it is not there."""
        self._marks[row, 0] = 0
        self._whole.discard(row)

    def write(self, slot: Slot, row: int, value: Tensor) -> None:
        """Put the tensor of one sample into ``row``."""
        self._maps[self.slots.index(slot)][row].copy_(value)

    def mark(self, row: int, source: int) -> None:
        """All tensors of ``row`` are written, made of ``source``."""
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
        """Have the system read ``rows`` from the disk meanwhile; it returns at once."""
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
                f"{self.folder} has {size_text(free)} to give. Choose another FREEZE.CACHE.FOLDER, fewer "
                "VARIANTS or DTYPE: bfloat16, or delete other keys' folders beside it."
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
    """A file of ``size`` bytes, all reserved: a process that writes to a map dies of a full disk."""
    with open(path, "ab") as file:
        found = os.fstat(file.fileno()).st_size
        if found not in (0, size):
            raise FreezeError(
                f"{path} must have {size} bytes, but has {found}: it was cut off or belongs to something "
                f"else. Delete {path.parent}; it is filled anew."
            )
        if found == size:
            return
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            os.truncate(path, size)


def _mapped(path: Path, dtype: torch.dtype, shape: Sequence[int]) -> Tensor:
    return torch.from_file(str(path), shared=True, size=_count(shape), dtype=dtype).view(*shape)
