"""Reading PandaSet's files: gzipped data frames and JSON, without running code that they name."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.bounded import check_bounded
from pcdet_freeze.utils.untrusted_files.data_frames import load_data_frame

MOST_BYTES = 2**28
"""of an uncompressed file; a sweep's points take 8 MB"""
LONGEST = 100
"""characters of a label or id"""


def read_table(path: Path, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """``columns`` of a data frame in a ``.pkl.gz`` file, each (rows,): finite float64, or text.

    Raises DataError naming the file: missing, broken, without a column, a column of another kind.
    """
    try:
        found = load_data_frame(_unzipped(path))
    except DataError:
        raise
    except Exception as error:  # a damaged stream can raise anything, SystemError and SyntaxError included
        raise DataError(f"{path}: not a pickled data frame of PandaSet ({error}). Fetch it again") from error
    missing = [name for name in columns if name not in found]
    if missing:
        shown = ", ".join(sorted(found))[:300]
        raise DataError(f"{path}: a table must have the columns {', '.join(missing)}; has {shown}")
    return {name: _column(found[name], name, path) for name in columns}


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


def _column(values: np.ndarray, name: str, path: Path) -> np.ndarray:
    if values.dtype.kind in "biuf":
        numbers = values.astype(np.float64)
        if not np.isfinite(numbers).all():
            raise DataError(f"{path}: the column {name} must be finite, but holds NaN or inf. Fetch it again")
        return numbers
    texts = values.tolist()
    if not all(isinstance(text, str) and len(text) <= LONGEST for text in texts):
        raise DataError(f"{path}: the column {name} must hold texts of at most {LONGEST} characters")
    return np.array(texts, dtype=str)


def read_json(path: Path) -> Any:
    """The value in a JSON file; DataError that names the file."""
    try:
        raw = path.read_bytes()
        value = json.loads(raw)
        check_bounded(value, len(raw))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a JSON file of PandaSet ({error}). Fetch it again") from error
    return value
