"""The packed file: records, then the index (offsets, checksums, columns), then a footer in JSON.

A reader begins at the end: the last bytes say where the footer is, the footer where the index is. A file
that is cut off has no such end. Each record is a pickle of plain values, and is read like an info file
(``load_plain``): a packed file from elsewhere cannot run code. Records are read with ``pread`` and not
mapped, so that a worker's resident memory does not grow by the pages that it has seen, and a file that
somebody truncates is an error and not the end of the process (SIGBUS). The index is mapped.
"""

from __future__ import annotations

import json
import mmap
import os
import pickle
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.packed.kinds import Kind, Value, find_kind
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.safe_pickle import load_plain

MAGIC = b"pcdet_freeze: packed list, 1\n"
_END = b"pcdet_freeze: end\n"
_TAIL = 16 + 8 + len(_END)
_MOST_FOOTER = 2**26
_KEYS = {"kind": str, "version": int, "sources": list, "groups": list, "sections": dict, "checksum": int}
_ALIGNED = 64
_DTYPES = "biuU"
OFFSETS, SUMS = "offsets", "checksums"
_BROKEN = (ValueError, KeyError, TypeError, IndexError, OverflowError, MemoryError, RecursionError)

Group = tuple[int, str, int, int]
"""number of the source, name, first entry, end"""


class UnusableError(Exception):
    """Why a packed file is not used; the message completes 'it ...'."""


@dataclass(frozen=True)
class Source:
    """State of a ``.pkl``; a packed file is up to date while these are the same."""

    name: str
    size: int
    time: int

    @classmethod
    def of(cls, path: Path) -> Source:
        """The present state; OSError where the file is not there."""
        stat = path.stat()
        return cls(path.name, stat.st_size, stat.st_mtime_ns)


class Writer:
    """Writes records and, at the end, the index.

    Args:
        write: takes the next bytes of the file.
        kind, sources: what the footer says.
    """

    def __init__(self, write: Callable[[bytes], Any], kind: Kind, sources: Sequence[Source]) -> None:
        self._write, self.kind, self.sources = write, kind, sources
        self.at = 0
        self.groups: list[Group] = []
        self._offsets: list[int] = []
        self._sums: list[int] = []
        self._columns: dict[str, list[Value]] = {}
        self._put(MAGIC)

    @property
    def count(self) -> int:
        """Records so far."""
        return len(self._sums)

    def add(self, item: Any) -> None:
        """Write one entry."""
        raw = pickle.dumps(item, protocol=4)
        self._offsets.append(self.at)
        self._sums.append(zlib.crc32(raw))
        for name, value in self.kind.columns(item).items():
            self._columns.setdefault(name, []).append(value)
        self._put(raw)

    def end(self) -> None:
        """Write index and footer."""
        sections: dict[str, np.ndarray] = {
            OFFSETS: np.array([*self._offsets, self.at], np.uint64),
            SUMS: np.array(self._sums, np.uint32),
        }
        sections |= {name: np.array(values) for name, values in self._columns.items()}
        places, checksum = {}, 0
        for name, array in sections.items():
            self._put(bytes(-self.at % _ALIGNED))
            raw = array.tobytes()
            places[name] = [self.at, array.dtype.str, len(array)]
            checksum = zlib.crc32(raw, checksum)
            self._put(raw)
        footer = {
            "kind": self.kind.ref,
            "version": self.kind.version,
            "sources": [[source.name, source.size, source.time] for source in self.sources],
            "groups": self.groups,
            "sections": places,
            "checksum": checksum,
        }
        at, raw = self.at, json.dumps(footer).encode()
        self._put(raw)
        self._put(b"".join(number.to_bytes(8, "little") for number in (at, len(raw), zlib.crc32(raw))))
        self._put(_END)

    def _put(self, raw: bytes) -> None:
        self._write(raw)
        self.at += len(raw)


class PackedFile:
    """An open packed file: ``record(i)``, ``column(name)``, ``groups``.

    Raises UnusableError for a file that is not whole, of another kind, or not of ``sources``.
    """

    def __init__(self, path: Path, kind: Kind, sources: Sequence[Source]) -> None:
        self.path, self.kind, self.sources = path, kind, list(sources)
        self._open()

    def _open(self) -> None:
        self._file = _File(self.path)
        try:
            footer = self._file.footer()
            self._check(footer)
            self._sections = self._file.sections(footer["sections"])
            self.groups: list[Group] = [(int(s), str(n), int(b), int(e)) for s, n, b, e in footer["groups"]]
        except _BROKEN as error:
            raise UnusableError(f"has a footer that cannot be read ({error})") from error
        checksum = 0
        for array in self._sections.values():
            checksum = zlib.crc32(np.ascontiguousarray(array).view(np.uint8).data, checksum)
        lengths = {len(array) for name, array in self._sections.items() if name != OFFSETS}
        ends = [end for _, _, begin, end in self.groups if 0 <= begin <= end]
        if (
            checksum != footer["checksum"]
            or lengths != {len(self._sections[OFFSETS]) - 1}
            or len(ends) < len(self.groups)
            or max(ends, default=0) > len(self)
        ):
            raise UnusableError("is damaged: its index does not fit")

    def _check(self, footer: Mapping[str, Any]) -> None:
        if (footer["kind"], footer["version"]) != (self.kind.ref, self.kind.version):
            raise UnusableError("is of another version")
        known = [Source(*entry) for entry in footer["sources"]]
        same = set(known)
        for source in self.sources:
            if source not in same:
                raise UnusableError(f"is out of date: {source.name} is another file now")
        if known != self.sources:
            raise UnusableError("is out of date: it was made from another list of files")

    def __len__(self) -> int:
        return len(self._sections[SUMS])

    def column(self, name: str) -> np.ndarray:
        """(N,) values of all entries."""
        return self._sections[name]

    def record(self, number: int) -> Any:
        """Entry ``number``; DataError where the file was damaged after it had been opened."""
        begin, end = (int(value) for value in self._sections[OFFSETS][number : number + 2])
        try:
            raw = self._file.read(begin, end - begin)
            if zlib.crc32(raw) != self._sections[SUMS][number]:
                raise ValueError("its checksum is wrong")
            return load_plain(raw)
        except Exception as error:  # a damaged stream can raise anything
            raise DataError(
                f"{self.path}: entry {number} of this packed list cannot be read ({error}). Delete the file: "
                "the next start makes it again from the .pkl files"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the file for itself."""
        return {"path": self.path, "kind": self.kind.ref, "sources": self.sources}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.kind, self.sources = state["path"], find_kind(state["kind"]), state["sources"]
        try:
            self._open()
        except (UnusableError, OSError) as error:
            raise DataError(f"{self.path}: this packed list {error}. Start the run again") from error


class _File:
    """A file that stays the same where its name is given to another one."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.fd)
        self.size = os.fstat(self.fd).st_size

    def read(self, at: int, length: int) -> bytes:
        """``length`` bytes from ``at``, fewer at the end of the file; processes share no position."""
        raw = os.pread(self.fd, length, at)
        while 0 < len(raw) < length and (more := os.pread(self.fd, length - len(raw), at + len(raw))):
            raw += more
        return raw

    def footer(self) -> dict[str, Any]:
        """What the end of the file says; UnusableError where it is not the end of a packed list."""
        tail = self.read(max(self.size - _TAIL, 0), _TAIL) if self.size > _TAIL else b""
        if not tail.endswith(_END) or self.read(0, len(MAGIC)) != MAGIC:
            raise UnusableError("is not a whole packed list")
        at, length, checksum = (int.from_bytes(tail[k : k + 8], "little") for k in (0, 8, 16))
        if length > _MOST_FOOTER or at + length + _TAIL != self.size:
            raise UnusableError("is not a whole packed list")
        raw = self.read(at, length)
        if zlib.crc32(raw) != checksum:
            raise UnusableError("is damaged: the checksum of its footer is wrong")
        found = json.loads(raw)
        if not all(isinstance(found[key], kind) for key, kind in _KEYS.items()):
            raise TypeError("a value of another type")
        return dict(found)

    def sections(self, places: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of the index, mapped."""
        raw = np.frombuffer(mmap.mmap(self.fd, 0, access=mmap.ACCESS_READ), np.uint8)
        found = {}
        for name, (at, code, count) in places.items():
            dtype = np.dtype(code)
            end = at + count * dtype.itemsize
            if dtype.kind not in _DTYPES or not 0 <= at <= end <= self.size or at % _ALIGNED:
                raise ValueError(f"{name} at {at}")
            found[name] = raw[at:end].view(dtype)
        return {OFFSETS: found.pop(OFFSETS), SUMS: found.pop(SUMS), **found}
