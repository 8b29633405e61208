"""What the ``prepare`` of data sets shares: a part a frame, written as soon as it is done, and the report.

An interrupted run continues with the frames that are left: a part is used again if its key, which its files
and the config decide, is the same.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.file_formats.files import read_pickle, replacing, write_pickle
from pcdet_freeze.datasets.reading.timed_reads import current_limit, reading_pool, reads_within, timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.utils.progress import progress
from pcdet_freeze.utils.untrusted_files.inside import inside

Info = dict[str, Any]
_logger = logging.getLogger("pcdet_freeze.prepare")


@dataclass
class PrepareReport:
    """What was written: frames a mode, database objects a class, points a class, bad frames with a reason."""

    unit: str = "frame"
    """what the data set calls a frame"""
    frames: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        def listed(counts: Mapping[str, int]) -> str:
            return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"

        many = f"{self.unit}s"
        points = (
            f"points of each class in the training {many}: {listed(self.points)}; " if self.points else ""
        )
        return (
            f"{many}: {listed(self.frames)}; objects in the database: {listed(self.objects)}; {points}"
            f"skipped {many}: {len(self.skipped)}"
        )

    def log(self, logger: logging.Logger, class_names: Sequence[str], out: Path) -> None:
        """Name the frames that were left out, and the classes that gt_sampling has nothing of."""
        for name, reason in self.skipped.items():
            logger.warning("skipped %s %s: %s", self.unit, name, reason)
        for name in class_names:
            if name not in self.objects:
                text = "the training %ss have no %s: gt_sampling will have none to paste"
                logger.warning(text, self.unit, name)
        logger.info("written to %s: %s", out, self)


@dataclass(frozen=True)
class Frames:
    """The frames of one mode."""

    mode: str
    names: Sequence[str]
    """in order; two frames do not share a name"""
    key: Callable[[int], str]
    """changes with all that the part of a frame depends on"""
    make: Callable[[int], Info]
    """the part of a frame; DataError for a bad frame"""


@contextmanager
def parts_folder(out: Path, name: str) -> Iterator[Path]:
    """The folder of the parts, which is removed when the block ends without an error.

    Raises DataError where ``out`` cannot be written.
    """
    with writing_infos(out):
        yield out / name
        shutil.rmtree(out / name, ignore_errors=True)


@contextmanager
def writing_infos(out: Path) -> Iterator[None]:
    """Make the folder ``out``; DataError where it, or a file that the block writes, cannot be written."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"the info files cannot be written to {out} ({error}). Name another folder with --out DIR, "
            "and set DATA_CONFIG.INFO_ROOT to it"
        ) from error


def make_parts(frames: Frames, folder: Path, workers: int, report: PrepareReport) -> list[Info]:
    """The part of each good frame, in order; bad ones go into the report. DataError where all are bad."""
    limit = current_limit()

    def one(index: int) -> Info | DataError:
        try:
            with reads_within(limit):  # of a thread of its own
                return _part(frames, index, folder)
        except DataError as error:
            return error

    found = []
    with reading_pool(workers) as pool:
        results = pool.map(one, range(len(frames.names)))
        shown = progress(results, len(frames.names), frames.mode, report.unit, _logger.info)
        for index, result in enumerate(shown):
            if isinstance(result, DataError):
                report.skipped[frames.names[index]] = str(result)
            else:
                found.append(result)
    if not found:
        first = next(iter(report.skipped.values()), "there is none")
        raise DataError(f"no usable {report.unit} for {frames.mode}; the first fault: {first}")
    report.frames[frames.mode] = len(found)
    return found


def _part(frames: Frames, index: int, folder: Path) -> Info:
    """The part that an earlier run finished, or a new one."""
    path = inside(folder, f"{frames.names[index]}_{frames.mode}.pkl", "a frame's part")
    key = frames.key(index)
    if path.is_file():
        try:
            known = read_pickle(path)
            if isinstance(known, dict) and known.get("key") == key:
                return known
        except DataError:  # damaged: written anew
            pass
    part = {"key": key, **frames.make(index)}
    write_pickle(path, part)
    return part


def key_of(files: Sequence[Path], *values: object) -> str:
    """A key that changes with ``values``, and with size and time of ``files``."""
    states = [timed(file, partial(_state, file)) for file in files]
    return hashlib.sha256(repr((values, states)).encode()).hexdigest()


def _state(file: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where it is not there."""
    if not file.is_file():
        return None
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def write_objects(
    out: Path, folder: str, frame: str, points: np.ndarray, boxes: np.ndarray, names: Sequence[str]
) -> list[Info]:
    """Write the points in each box, relative to its middle, below ``out / folder``; the database's entries.

    Args:
        points: (N, C) float32.
        boxes: (K, 7+), names: of K boxes.
    """
    entries = []
    inside_each = points_in_boxes_mask(points, boxes[:, :7])
    for number, (name, box) in enumerate(zip(names, boxes, strict=True)):
        path = f"{folder}/{frame}_{file_name(str(name))}_{number}.bin"
        cloud = points[inside_each[number]]
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
                "difficulty": 0,
            }
        )
    return entries


def file_name(label: str) -> str:
    """``label`` as a part of a file name: its first characters, since a name has at most 255 bytes."""
    return label[:40].replace(" ", "_").replace("/", "_")


def points_of_classes(parts: Sequence[Info], classes: Sequence[str]) -> dict[str, int]:
    """Points of each class in all ``parts`` whose info has ``point_counts``; empty where none has."""
    counts = [part["info"]["point_counts"] for part in parts if "point_counts" in part["info"]]
    return dict(zip(classes, np.sum(counts, axis=0).tolist(), strict=True)) if counts else {}


def count_points(labels: np.ndarray, classes: Sequence[str]) -> np.ndarray:
    """(C,) points (N,) of each of the classes 0, 1, ..., without those of 255."""
    return np.bincount(labels, minlength=256)[: len(classes)]


def write_database(path: Path, parts: Sequence[Info], report: PrepareReport) -> None:
    """Join the objects of ``parts`` by class into a database info file."""
    database: dict[str, list[Info]] = {}
    for part in parts:
        for entry in part["objects"]:
            database.setdefault(entry["name"], []).append(entry)
    write_pickle(path, database)
    report.objects = {name: len(entries) for name, entries in database.items()}
