"""The ground-truth database: its info file, its filters, its point files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.files import read_bin, read_pickle
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.errors import ConfigError, DataError

ObjectInfo = dict[str, Any]
Database = dict[str, list[ObjectInfo]]


def load_database(
    paths: Sequence[Path], names: Sequence[str], prepare: Config, log: logging.Logger
) -> Database:
    """The objects of the classes ``names`` in all ``paths``, after the filters of ``PREPARE``.

    Raises DataError for a missing or broken info file, ConfigError for an unknown filter.
    """
    database: Database = {name: [] for name in names}
    for path in paths:
        infos = read_pickle(path)
        if not isinstance(infos, dict):
            raise DataError(f"{path}: a database info file holds a dict of lists; got {type(infos).__name__}")
        for name in names:
            database[name] += infos.get(name, [])
    for key, setting in prepare.items():
        if key not in FILTERS:
            raise ConfigError(f"gt_sampling.PREPARE knows {', '.join(FILTERS)}; got {key!r}")
        database = FILTERS[key](database, setting)
    log.info(
        "database for gt_sampling: %s",
        ", ".join(f"{len(infos)} {name}" for name, infos in database.items()) or "empty",
    )
    return database


def _by_difficulty(database: Database, removed: Any) -> Database:
    return {
        name: [info for info in infos if info["difficulty"] not in removed]
        for name, infos in database.items()
    }


def _by_min_points(database: Database, entries: Any) -> Database:
    least: dict[str, int] = {}
    for entry in entries:
        name, colon, number = str(entry).partition(":")
        if not colon or not number.strip().isdigit():
            raise ConfigError(f"filter_by_min_points must hold entries such as 'Car:5'; got {entry!r}")
        least[name] = int(number)
    return {
        name: [info for info in infos if info["num_points_in_gt"] >= least.get(name, 0)]
        for name, infos in database.items()
    }


FILTERS: dict[str, Callable[[Database, Any], Database]] = {
    "filter_by_difficulty": _by_difficulty,
    "filter_by_min_points": _by_min_points,
}


def read_object(root: Path, info: ObjectInfo, features: int) -> np.ndarray:
    """Points (N, features) float32 of one object, x, y, z relative to the centre of its box."""
    return read_bin(root / info["path"], features, allow_empty=True)
