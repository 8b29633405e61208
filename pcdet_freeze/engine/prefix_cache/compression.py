"""Lossless compression of the rows of a cache by blosc2 (the extra ``cache`` of this package).

Behind a ReLU about half of the values are exact zeros, and wherever no point reaches, a map repeats one
value for each channel. Both are runs of equal bytes, which Zstandard and LZ4 find by themselves; bit
shuffling helps where values differ in their low bits only. Which of the two is smaller depends on the
weights, so the first frames decide.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.errors import FreezeError

STORAGE = "storage.json"
"""how the rows in a folder are stored; a folder of version 0.3.0 has no such file, and is not compressed"""
CODECS = ("zstd", "lz4", "none")
INSTALL = "pip install 'pcdet-freeze[cache]'"
LEVEL, BLOCK = 1, 2**18
"""of blosc2: higher levels take 3 to 8 times as long for 2 per cent, smaller blocks are larger in all"""
OVERHEAD = 64
"""bytes that incompressible data may grow by"""
LARGEST = 2**31 - 1 - OVERHEAD
"""bytes of a row that blosc2 takes"""


@dataclass(frozen=True)
class Compression:
    """How rows are stored: ``codec`` zstd, lz4 or none, with bit shuffling or without."""

    codec: str = "none"
    shuffle: bool = False

    def __bool__(self) -> bool:
        return self.codec != "none"

    def pack(self, row: Tensor) -> bytes:
        """Compress a contiguous CPU tensor; the same values give the same bytes."""
        blosc2 = _blosc2()
        if not row.numel():
            return b""
        packed: bytes = blosc2.compress2(
            bytes_of(row),
            codec=getattr(blosc2.Codec, self.codec.upper()),
            clevel=LEVEL if self.codec == "zstd" else 5,
            typesize=row.element_size(),
            filters=[blosc2.Filter.BITSHUFFLE if self.shuffle else blosc2.Filter.NOFILTER],
            splitmode=blosc2.SplitMode.NEVER_SPLIT,
            blocksize=BLOCK,
            nthreads=1,
        )
        return packed

    def unpack(self, packed: bytes, row: Tensor) -> None:
        """Decompress into a contiguous CPU tensor."""
        if row.numel():
            _blosc2().decompress2(packed, dst=bytes_of(row), nthreads=1)


def bytes_of(row: Tensor) -> Any:
    """The memory of a contiguous CPU tensor, as an array of uint8."""
    return row.detach().reshape(-1).view(torch.uint8).numpy()


def is_installed() -> bool:
    """Whether blosc2 can be imported."""
    try:
        _blosc2()
    except ImportError:
        return False
    return True


def smallest(codec: str, rows: Sequence[Tensor]) -> Compression:
    """With bit shuffling or without, whichever stores ``rows`` in fewer bytes."""
    kinds = Compression(codec), Compression(codec, shuffle=True)
    return min(kinds, key=lambda kind: sum(len(kind.pack(row)) for row in rows))


def compression_for(folder: Path, codec: str, rows: Sequence[Tensor]) -> tuple[Compression, str]:
    """Return how ``folder`` stores its rows, or would, and a line for the log where that is not as asked.

    Args:
        codec: FREEZE.CACHE.COMPRESS.
        rows: contiguous CPU tensors of some samples.

    Raises:
        FreezeError: the rows there are compressed, and blosc2 is not installed.
    """
    there = stored_as(folder)
    if there is not None:
        if there and not is_installed():
            raise FreezeError(
                f"The cache in {folder} was compressed by blosc2, which is not installed. Install it "
                f"({INSTALL}), or choose another FREEZE.CACHE.FOLDER."
            )
        same = there.codec == codec
        how = f"stored with COMPRESS: {there.codec} and stays so: delete {folder} to change it"
        return there, "" if same else f"  {how}"
    if codec == "none" or any(row.nbytes > LARGEST for row in rows):
        return Compression(), ""
    if not is_installed():
        return Compression(), f"  not compressed, since blosc2 is not installed: {INSTALL}"
    return smallest(codec, rows), ""


def stored_as(folder: Path) -> Compression | None:
    """How the rows in ``folder`` are stored; None if there are none."""
    path = folder / STORAGE
    try:
        found = json.loads(path.read_text())
        if found["codec"] not in CODECS:
            raise ValueError(f"codec {found['codec']!r} is none of {', '.join(CODECS)}")
        return Compression(str(found["codec"]), bool(found["shuffle"]))
    except FileNotFoundError:
        return Compression() if (folder / "marks.bin").exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FreezeError(
            f"{path} cannot be read ({error}). Delete {folder}; it will be filled again."
        ) from error


def state_storage(folder: Path, compression: Compression) -> None:
    """Write how the rows in ``folder`` are stored, unless another process has."""
    path, temporary = folder / STORAGE, folder / f"{STORAGE}.{os.getpid()}"
    temporary.write_text(json.dumps(asdict(compression)) + "\n")
    try:
        os.link(temporary, path)  # unlike replace, this never overwrites what another process wrote
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        os.replace(temporary, path)
    temporary.unlink(missing_ok=True)


def _blosc2() -> Any:
    import blosc2  # an optional dependency, and 0.2 s of every start

    return blosc2
