"""Read and write data files (points, pickles of plain values); writing is atomic."""

from __future__ import annotations

import math
import os
import pickle
import tempfile
import tokenize
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pcdet_freeze.datasets.checks.kinds import kind_of
from pcdet_freeze.datasets.frames import check_points
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.safe_pickle import load_plain

PREPARE_HINT = "pcdet-freeze prepare kitti --cfg_file dataset_configs/kitti_dataset.yaml"
OTHER_SETS = ("argoverse2", "custom", "nuscenes", "once", "pandaset", "semantic_kitti", "waymo")
"""names with which info files of other data sets begin"""
SEGMENT, SEGMENT_HINT = "segment-", "python -m pcdet.datasets.waymo.waymo_dataset --func create_waymo_infos"
"""part of the name of the infos of one segment of Waymo, and the command of OpenPCDet that writes them"""


def read_bin(path: Path, features: int, allow_empty: bool = False) -> np.ndarray:
    """Points (N, features) of a raw little-endian float32 file.

    Raises DataError naming the file: missing, empty, not a whole number of points, NaN or inf.
    """
    try:
        raw = timed(path, path.read_bytes)
    except OSError as error:
        raise DataError(
            f"{path}: the point file cannot be read ({error.strerror}); "
            "check DATA_PATH, and that the file is there"
        ) from error
    row = 4 * features
    if kind := kind_of(raw):
        raise DataError(f"{path}: a point file holds {features} float32 a point; this one looks like {kind}")
    if len(raw) % row or not (raw or allow_empty):
        kind = "empty" if not raw else "truncated"
        raise DataError(
            f"{path}: {kind} point file; its size must be a positive multiple of {row} bytes "
            f"({features} float32 per point), got {len(raw)}. Fetch the file again"
        )
    return check_points(np.frombuffer(raw, "<f4").reshape(-1, features).astype(np.float32), path)


def read_pickle(path: Path) -> Any:
    """Return the plain value in an info file; raises DataError if it is missing or not plain."""
    try:
        raw = timed(path, path.read_bytes)
    except OSError as error:
        raise DataError(
            f"{path}: the info file cannot be read ({error.strerror}). Write it with "
            f"`{prepare_hint(path)}`, or set DATA_PATH or INFO_ROOT to where it is"
        ) from error
    try:
        return load_plain(raw)
    except Exception as error:  # a damaged stream can raise anything, SystemError and SyntaxError included
        raise DataError(
            f"{path}: not an info file of plain values ({error}). Regenerate it with `{prepare_hint(path)}`"
        ) from error


def prepare_hint(path: Path) -> str:
    """The command that writes the info file ``path``, whose name begins with that of its data set."""
    if SEGMENT in path.name:
        return SEGMENT_HINT
    name = next((name for name in OTHER_SETS if path.name.startswith(f"{name}_")), "kitti")
    return PREPARE_HINT.replace("kitti", name)


def read_npy(path: Path) -> np.ndarray:
    """The array of numbers in a file of ``np.save``; its header is compared with the size of the file first.

    Raises DataError naming the file.
    """
    try:
        return timed(path, lambda: _npy_values(path))
    except _NO_ARRAY as error:
        raise DataError(f"{path}: not an array that numpy saved with np.save ({error})") from error


def _npy_values(path: Path) -> np.ndarray:
    with path.open("rb") as file:
        shape, fortran, dtype = _npy_header(file)
        count = math.prod(shape)
        size = os.fstat(file.fileno()).st_size - file.tell()
        if min(shape, default=0) < 0 or dtype.hasobject or count * dtype.itemsize != size:
            raise ValueError(f"an array {dtype} of shape {shape}, but {size} bytes of values")
        values = np.frombuffer(file.read(), dtype, count)
    return values.reshape(shape, order="F" if fortran else "C")


_NO_ARRAY = (OSError, ValueError, EOFError, TypeError, SyntaxError, LookupError, ArithmeticError, MemoryError,
             RecursionError, tokenize.TokenError)  # fmt: skip
"""what numpy's reader of headers, which parses Python literals, raises for damaged ones"""


def _npy_header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(file)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(file)
    raise ValueError(f"version {version} of the format")


def write_pickle(path: Path, value: Any) -> None:
    """Write ``value`` atomically: to a temporary file beside ``path``, synced, then renamed."""
    with replacing(path) as write:
        write(pickle.dumps(value, protocol=4))


@contextmanager
def replacing(path: Path, sync: bool = True) -> Iterator[Callable[[bytes], Any]]:
    """Yield a write function; ``path`` is created or replaced only if the block ends without an error.

    ``sync=False`` does not wait for the disk (for thousands of small files).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream.write
            stream.flush()
            if sync:
                os.fsync(stream.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
