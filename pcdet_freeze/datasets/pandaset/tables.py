"""Reading PandaSet's files: gzipped data frames and JSON, without running code that they name."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.file_formats.table_columns import check_numbers, check_texts
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.bounded import check_bounded
from pcdet_freeze.utils.untrusted_files.data_frames import load_data_frame

MOST_BYTES = 2**28
"""of an uncompressed file; a sweep's points take 8 MB"""
MOST_ROWS, MOST_CUBOIDS = 2_000_000, 2_000
"""rows of a table of points, and of cuboids; a sweep has some 170,000 and some 100"""


def read_table(
    path: Path, numbers: Sequence[str], texts: Sequence[str] = (), most: int = MOST_ROWS
) -> dict[str, np.ndarray]:
    """Columns of a data frame in a ``.pkl.gz`` file, each (rows,).

    Args:
        path: the file.
        numbers: names of columns that are finite float64.
        texts: names of columns that are str.
        most: rows; columns of a small file may share their bytes, so its size bounds no memory.

    Raises:
        DataError: the file is missing or broken, has too many rows, no such column or one of another kind.
            The message names the file.
        ReadTimeoutError: see ``timed_reads``.
    """
    raw = timed(path, lambda: _unzipped(path))
    try:
        found = load_data_frame(raw)
    except DataError:
        raise
    except Exception as error:  # a damaged stream can raise anything, SystemError and SyntaxError included
        raise DataError(f"{path}: not a pickled data frame of PandaSet ({error}). Fetch it again") from error
    missing = [name for name in (*numbers, *texts) if name not in found]
    if missing:
        shown = ", ".join(sorted(found))[:300]
        raise DataError(f"{path}: a table must have the columns {', '.join(missing)}; has {shown}")
    rows = max((len(values) for values in found.values()), default=0)
    if rows > most:
        raise DataError(f"{path}: a table holds at most {most} rows; it has {rows}. Fetch it again")
    return {
        **{name: check_numbers(found[name], name, path).astype(np.float64) for name in numbers},
        **{name: check_texts(found[name], name, path) for name in texts},
    }


def _unzipped(path: Path) -> bytes:
    try:
        with gzip.open(path) as file:
            raw = file.read(MOST_BYTES + 1)
    except FileNotFoundError as error:
        raise DataError(f"{path}: this file of PandaSet is missing; check DATA_PATH and SWEEPS") from error
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: a gzip file is expected, but cannot be read ({error})") from error
    if len(raw) > MOST_BYTES:
        raise DataError(f"{path}: a file holds at most {MOST_BYTES} bytes uncompressed; it has more")
    return raw


def read_json(path: Path) -> Any:
    """The value in a JSON file; DataError that names the file."""
    try:
        raw = timed(path, path.read_bytes)
        value = json.loads(raw)
        check_bounded(value, len(raw))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file of PandaSet ({error}). Fetch it again") from error
    return value
