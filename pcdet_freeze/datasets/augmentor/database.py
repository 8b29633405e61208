"""The ground-truth database: its info file, its filters, its point files."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from pcdet_freeze.datasets.boxes import box_fault
from pcdet_freeze.datasets.file_formats.files import read_bin
from pcdet_freeze.datasets.packed import Kind, Rows, open_list
from pcdet_freeze.datasets.reading.bad_data import OBJECT, BadData, BadFramePolicy, BadItem
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.settings.rules import Rule, whole
from pcdet_freeze.utils.settings.sections import Section
from pcdet_freeze.utils.untrusted_files.inside import inside

ObjectInfo = dict[str, Any]
Database = dict[str, Rows]
"""class -> its objects, of which each is read when it is drawn"""
NO_SKIPS = BadFramePolicy(skip=False)
SKIP_HINT = "DATA_CONFIG.ON_BAD_FRAME: skip leaves it out"


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

    filter_by_difficulty: tuple[Annotated[int, whole(-1)], ...] = ()
    """difficulties that are left out"""
    filter_by_min_points: tuple[Numbered, ...] = ()
    """class and the least number of points"""


def _classes(infos: Any, path: Path) -> Mapping[str, list[Any]]:
    if not isinstance(infos, dict):
        raise DataError(f"{path}: a database info file holds a dict of lists; got {type(infos).__name__}")
    if wrong := [name for name, entries in infos.items() if not isinstance(entries, list)]:
        raise DataError(f"{path}: a database info file holds a list for each class; {wrong[0]} has none")
    return {str(name): entries for name, entries in infos.items()}


def _columns(entry: Any) -> Mapping[str, bool | int]:
    """What the filters ask for; of an entry that is broken, the key that they ask for is 0."""
    numbers = {key: _number(entry, key) for key in ("difficulty", "num_points_in_gt")}
    return {
        "sound": not _entry_fault(entry, Filters()),
        **{key: number or 0 for key, number in numbers.items()},
        **{f"has_{key}": number is not None for key, number in numbers.items()},
    }


def _number(entry: Any, key: str) -> int | None:
    """A whole number of an entry, within 64 bits; None where it has none."""
    found = entry.get(key) if isinstance(entry, Mapping) else None
    return max(-(2**62), min(int(found), 2**62)) if isinstance(found, int | np.integer) else None


DATABASE = Kind(f"{__name__}:DATABASE", 1, _classes, _columns)
"""database info files: a list of objects for each class"""


def load_database(
    paths: Sequence[Path],
    names: Sequence[str],
    filters: Filters,
    log: logging.Logger,
    policy: BadFramePolicy = NO_SKIPS,
) -> Database:
    """The objects of the classes ``names`` in all ``paths``, after the ``filters``.

    Raises DataError for a missing or broken info file, and for broken entries that ``policy`` does not allow.
    """
    least = numbers_of(filters.filter_by_min_points)
    stored = open_list(DATABASE, paths, log)
    database: Database = {name: stored[:0] for name in names}
    for number, path in enumerate(paths):
        given = {name: stored.group(number, name) for name in names}
        for name, usable in _usable(given, path, filters, log, policy).items():
            database[name] += usable
    for name, objects in database.items():
        if filters.filter_by_difficulty:
            levels = objects.column("difficulty")
            objects = objects.where(~np.isin(levels, filters.filter_by_difficulty))
        if least:
            objects = objects.where(objects.column("num_points_in_gt") >= least.get(name, 0))
        database[name] = objects
    log.info(
        "database for gt_sampling: %s",
        ", ".join(f"{len(infos)} {name}" for name, infos in database.items()) or "empty",
    )
    return database


def _usable(
    given: Database, path: Path, filters: Filters, log: logging.Logger, policy: BadFramePolicy
) -> Database:
    """The entries of each class that are not broken; broken ones are logged."""
    found: Database = {}
    bad = BadData(policy, {OBJECT: sum(map(len, given.values()))})
    for name, entries in given.items():
        sound = entries.column("sound").astype(bool)
        for key, asked in (
            ("has_difficulty", filters.filter_by_difficulty),
            ("has_num_points_in_gt", filters.filter_by_min_points),
        ):
            if asked:
                sound &= entries.column(key).astype(bool)
        for number in np.flatnonzero(~sound).tolist():
            fault = _fault_at(entries, number, filters)
            item = BadItem(OBJECT, f"entry {number} of {name}", f"{path}: entry {number} of {name}: {fault}")
            if not policy.skip:
                raise DataError(f"{item.reason}. {SKIP_HINT}")
            log.warning("left out of the database: %s", item.reason)
            bad.add([item])
        found[name] = entries.where(sound)
    return found


def _fault_at(entries: Rows, number: int, filters: Filters) -> str:
    try:
        return _entry_fault(entries[number], filters)
    except DataError as error:  # the record itself is damaged
        return str(error)


def _entry_fault(entry: Any, filters: Filters) -> str:
    """What is wrong with an entry of a database info file; empty where nothing is."""
    if not isinstance(entry, Mapping):
        return f"an object is a dict; got {type(entry).__name__}"
    needed = {"name": str, "path": str, "box3d_lidar": np.ndarray | list | tuple}
    if filters.filter_by_difficulty:
        needed["difficulty"] = int | np.integer
    if filters.filter_by_min_points:
        needed["num_points_in_gt"] = int | np.integer
    for key, kind in needed.items():
        if not isinstance(entry.get(key), kind):
            return f"{key} is missing, or has the type {type(entry.get(key)).__name__}"
    try:
        box = np.asarray(entry["box3d_lidar"], np.float64)
    except (ValueError, TypeError) as error:
        return f"box3d_lidar must be numbers ({error})"
    if box.ndim != 1 or len(box) < 7:
        return f"box3d_lidar must be seven numbers or more; got shape {box.shape}"
    return box_fault(box[None, :3], box[None, 3:6], box[6:7])


def read_object(root: Path, info: ObjectInfo, features: int) -> np.ndarray:
    """Points (N, features) float32 of one object, x, y, z relative to the centre of its box.

    Raises DataError that names the file: missing, truncated, with NaN, fewer points than its entry counts.
    """
    path = inside(root, info["path"], "an object's file")
    points = read_bin(path, features, allow_empty=True)
    counted = info.get("num_points_in_gt")
    if isinstance(counted, int | np.integer) and len(points) < counted:
        raise DataError(
            f"{path}: truncated point file; its entry in the database counts {counted} points, got "
            f"{len(points)}. Write the database anew"
        )
    return points
