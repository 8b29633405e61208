"""LAS and LAZ files by laspy, within what a file of their size can hold.

The decoder of LAZ files allocates what a file says, and ends the process where that fails; so sizes are
checked first.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from pcdet_freeze.errors import DataError

POINTS_A_BYTE = 8
"""of a LAZ file at most; real clouds take some bytes a point, and a decoded one takes fifty or more"""
_POINTS_AT = 96
"""byte of the header that begins the offset of the points"""
_MINOR_AT = 25
_RECORDS = {0: (100, 54), 4: (243, 60)}
"""minor version from which on -> where the number of records beside the points stands, and bytes of each"""


def read_las(path: Path) -> dict[str, np.ndarray]:
    """Columns of a file by name, (N,) each: x, y, z with scale and offset, and all that its points have.

    Raises:
        DataError: laspy or lazrs is not installed, or the file is damaged.
    """
    try:
        import laspy
    except ImportError as error:
        raise DataError(
            f"{path}: LAS and LAZ files need laspy, which is not installed: pip install 'pcdet-freeze[las]'"
        ) from error
    try:
        return _columns(laspy, path)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a damaged header raises anything; panics of lazrs are no Exception
        raise DataError(
            f"{path}: not a LAS or LAZ file that can be read ({error}). LAZ files need lazrs: pip install "
            "'pcdet-freeze[las]'"
        ) from error


def _columns(laspy: Any, path: Path) -> dict[str, np.ndarray]:
    size = path.stat().st_size
    _check_records(path, size)
    with laspy.open(path) as file:
        header = file.header
        packed = header.are_points_compressed
        most = POINTS_A_BYTE * size if packed else size // header.point_format.size
        if header.point_count > most:
            raise ValueError(f"its header counts {header.point_count} points, but the file has {size} bytes")
        if packed:
            _check_chunks(path, size)
        cloud = file.read()
    names = ["x", "y", "z", *cloud.point_format.dimension_names]
    return {name: np.asarray(cloud[name]) for name in dict.fromkeys(names)}


def _check_records(path: Path, size: int) -> None:
    """ValueError where the header counts more records than the file can hold, which laspy goes through."""
    with path.open("rb") as file:
        minor = _number(file, _MINOR_AT, "<B")
        for least, (place, length) in _RECORDS.items():
            if minor >= least and (records := _number(file, place, "<I")) * length > size:
                raise ValueError(f"its header counts {records} records, but the file has {size} bytes")


def _check_chunks(path: Path, size: int) -> None:
    """ValueError where the table of chunks lies outside the file, or has more chunks than bytes."""
    with path.open("rb") as file:
        table = _number(file, _number(file, _POINTS_AT, "<I"), "<q")
        if table == -1:  # written as a stream: the place of the table stands at the end
            table = _number(file, size - 8, "<q")
        if not 0 < table <= size - 8:
            raise ValueError(f"its table of chunks begins at byte {table} of {size}")
        chunks = _number(file, table + 4, "<I")
        if chunks > size:
            raise ValueError(f"its table lists {chunks} chunks, but the file has {size} bytes")


def _number(file: BinaryIO, place: int, kind: str) -> int:
    file.seek(place)
    return int(struct.unpack(kind, file.read(struct.calcsize(kind)))[0])
