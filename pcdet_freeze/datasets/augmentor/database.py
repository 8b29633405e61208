"""The ground-truth database: its info file, its filters, its point files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from pcdet_freeze.datasets.files import read_bin, read_pickle
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.inside import inside
from pcdet_freeze.utils.rules import Rule
from pcdet_freeze.utils.sections import Section

ObjectInfo = dict[str, Any]
Database = dict[str, list[ObjectInfo]]


def _is_numbered(entry: str) -> bool:
    name, _, number = entry.partition(":")
    return bool(name) and number.strip().isdigit()


Numbered = Annotated[str, Rule("NAME:NUMBER, such as Car:15", _is_numbered, many="NAME:NUMBER")]


def numbers_of(entries: Iterable[str]) -> dict[str, int]:
    """``["Car:15"]`` -> ``{"Car": 15}``."""
    pairs = (entry.partition(":") for entry in entries)
    return {name: int(number) for name, _, number in pairs}


@dataclass(frozen=True)
class Filters(Section):
    """gt_sampling.PREPARE: which objects of the database are used."""

    lower_keys: ClassVar[bool] = True

    filter_by_difficulty: tuple[int, ...] = ()
    """difficulties that are left out"""
    filter_by_min_points: tuple[Numbered, ...] = ()
    """class and the least number of points"""


def load_database(
    paths: Sequence[Path], names: Sequence[str], filters: Filters, log: logging.Logger
) -> Database:
    """The objects of the classes ``names`` in all ``paths``, after the ``filters``.

    Raises DataError for a missing or broken info file.
    """
    least = numbers_of(filters.filter_by_min_points)
    database: Database = {name: [] for name in names}
    for path in paths:
        infos = read_pickle(path)
        if not isinstance(infos, dict):
            raise DataError(f"{path}: a database info file holds a dict of lists; got {type(infos).__name__}")
        for name in names:
            database[name] += infos.get(name, [])
    if filters.filter_by_difficulty:
        for name, objects in database.items():
            database[name] = [o for o in objects if o["difficulty"] not in filters.filter_by_difficulty]
    if least:
        for name, objects in database.items():
            database[name] = [o for o in objects if o["num_points_in_gt"] >= least.get(name, 0)]
    log.info(
        "database for gt_sampling: %s",
        ", ".join(f"{len(infos)} {name}" for name, infos in database.items()) or "empty",
    )
    return database


def read_object(root: Path, info: ObjectInfo, features: int) -> np.ndarray:
    """Points (N, features) float32 of one object, x, y, z relative to the centre of its box."""
    return read_bin(inside(root, info["path"], "an object's file"), features, allow_empty=True)
