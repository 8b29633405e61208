"""What `prepare` of several data sets shares: parts in parallel, which an interrupted run keeps; objects."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from pcdet_freeze.datasets.files import read_pickle, replacing, write_pickle
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.timed_reads import current_limit, reading_pool, reads_within, timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.utils.untrusted_files.inside import inside

T = TypeVar("T")
R = TypeVar("R")
Info = dict[str, Any]
HOW_TO_WRITE = "Name another folder with --out DIR, and set DATA_CONFIG.INFO_ROOT to it"


@dataclass
class PrepareReport:
    """What was written: frames a split, database objects a class, bad frames with their reasons."""

    frames: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"frames: {listed(self.frames)}; objects in the database: {listed(self.objects)}; skipped: "
            f"{len(self.skipped)}"
        )


def listed(counts: Mapping[str, int]) -> str:
    """``3 Car, 2 Truck``; ``none`` for an empty mapping."""
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


def each_part(
    items: Sequence[T],
    make: Callable[[T], R],
    workers: int,
    title: str,
    name: Callable[[T], str],
    skipped: dict[str, str],
) -> list[R]:
    """``make`` of each item, in order, in threads with a progress bar; a DataError goes to ``skipped``."""
    limit = current_limit()

    def one(item: T) -> R | DataError:
        try:
            with reads_within(limit):  # of a thread of its own
                return make(item)
        except DataError as error:
            return error

    found: list[R] = []
    with reading_pool(workers) as pool:
        shown = tqdm(pool.map(one, items), total=len(items), desc=title, disable=not sys.stderr.isatty())
        for item, result in zip(items, shown, strict=True):
            if isinstance(result, DataError):
                skipped[name(item)] = str(result)
            else:
                found.append(result)
    return found


def kept_part(path: Path, key: str, make: Callable[[], Info]) -> Info:
    """The part that an earlier run wrote to ``path`` with this ``key``, else ``make()``, written there."""
    if path.is_file():
        try:
            known = read_pickle(path)
            if isinstance(known, dict) and known.get("key") == key:
                return known
        except DataError:  # damaged: written anew
            pass
    part = {"key": key, **make()}
    write_pickle(path, part)
    return part


def part_key(dataset_cfg: Config, files: Sequence[Path], *more: object) -> str:
    """Changes with the config and with size and time of ``files``."""
    states = [timed(file, partial(_state, file)) for file in files]
    return hashlib.sha256(repr((dict(dataset_cfg), states, *more)).encode()).hexdigest()


def _state(file: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where it is not there."""
    if not file.is_file():
        return None
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def write_objects(
    out: Path, folder: str, stem: str, names: np.ndarray, boxes: np.ndarray, points: np.ndarray
) -> list[Info]:
    """Write the points of each box, relative to its middle, as ``folder/stem_name_number.bin``.

    Args:
        out: folder that the paths of the entries are relative to.
        names: (K,) names of the boxes.
        boxes: (K, 7 or more).
        points: (N, C) in the frame of the boxes.
    Returns:
        For each box its entry in the database: name, path, gt_idx, box3d_lidar, num_points_in_gt.
    """
    entries = []
    covered = points_in_boxes_mask(points, boxes[:, :7].astype(np.float32))
    for number, (name, box) in enumerate(zip(names, boxes, strict=True)):
        path = f"{folder}/{stem}_{_file_name(str(name))}_{number}.bin"
        cloud = points[covered[number]]
        cloud[:, :3] -= box[:3]
        with replacing(inside(out, path, "an object's file"), sync=False) as write:
            write(cloud.astype("<f4").tobytes())
        entries.append(
            {
                "name": str(name),
                "path": path,
                "gt_idx": number,
                "box3d_lidar": box,
                "num_points_in_gt": len(cloud),
            }
        )
    return entries


def _file_name(label: str) -> str:
    """``label`` as a part of a file name: its first characters, since a name has at most 255 bytes."""
    return label[:40].replace(" ", "_").replace("/", "_")


def write_database(path: Path, entries: Sequence[Info]) -> dict[str, int]:
    """Write the info file of a database; returns the number of objects of each class."""
    database: dict[str, list[Info]] = {}
    for entry in entries:
        database.setdefault(entry["name"], []).append(entry)
    write_pickle(path, database)
    return {name: len(found) for name, found in database.items()}
