"""Reading Argoverse 2's feather tables (the extra ``av2``: pyarrow)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.file_formats.table_columns import check_numbers, check_texts
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import ConfigError, DataError


def read_table(path: Path, numbers: Sequence[str], texts: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Columns of a feather file: ``numbers``, which are finite, and ``texts``, which are str.

    Raises ConfigError without pyarrow, DataError naming the file: missing, broken, without a column, with one
    of another kind.
    """
    feather = _feather()
    if not timed(path, path.is_file):
        raise DataError(f"{path}: this table of Argoverse 2 is missing; check DATA_PATH and SWEEPS")
    try:
        table = timed(path, lambda: feather.read_table(path))
    except (OSError, ValueError) as error:  # pyarrow's own errors are both
        raise DataError(f"{path}: not a feather table ({error}). Fetch it again") from error
    missing = [name for name in (*numbers, *texts) if name not in table.column_names]
    if missing:
        raise DataError(
            f"{path}: lacks the columns {', '.join(missing)}; has {', '.join(table.column_names)}"
        )
    arrays = {name: table[name].to_numpy(zero_copy_only=False) for name in (*numbers, *texts)}
    return {
        **{name: check_numbers(arrays[name], name, path) for name in numbers},
        **{name: check_texts(arrays[name], name, path) for name in texts},
    }


def _feather() -> Any:
    try:
        from pyarrow import feather
    except ImportError as error:
        raise ConfigError(
            f"Argoverse 2 needs pyarrow, which is not installed ({error}): pip install 'pcdet-freeze[av2]'"
        ) from error
    return feather
