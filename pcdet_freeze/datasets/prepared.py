"""What `prepare` of several data sets shares: parts that survive an interruption, objects, the report.

Each frame's part is written as soon as it is done. A run that follows an interrupted one reads the parts of
the frames that are unchanged, and the frames that are left.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pcdet_freeze.datasets.files import read_pickle, replacing, write_pickle
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.datasets.timed_reads import current_limit, reading_pool, reads_within, timed
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.utils.untrusted_files.inside import inside

DATABASE = "gt_database"
Info = dict[str, Any]


@dataclass
class PrepareReport:
    """What was written: frames a split, objects of the database and points a class, bad frames and why."""

    frames: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    unit: str = "frames"

    def __str__(self) -> str:
        return (
            f"{self.unit}: {listed(self.frames)}; objects in the database: {listed(self.objects)}; points of "
            f"the training {self.unit}: {listed(self.points)}; skipped {self.unit}: {len(self.skipped)}"
        )


def listed(counts: Mapping[str, int]) -> str:
    """``3 Car, 2 Cyclist``, or none."""
    return ", ".join(f"{number} {name}" for name, number in counts.items()) or "none"


@dataclass(frozen=True)
class Parts:
    """Finished parts of frames in ``folder``, which is deleted when all of them are joined."""

    folder: Path

    def get(self, name: str, key: str, make: Callable[[], Info]) -> Info:
        """The part ``name`` of an earlier run with the same ``key``, or a new one, which is written."""
        path = inside(self.folder, f"{name}.pkl", "a frame's part")
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

    def delete(self) -> None:
        """Delete all parts."""
        shutil.rmtree(self.folder, ignore_errors=True)


def key_of(dataset_cfg: Config, files: Sequence[Path]) -> str:
    """A text that changes with the config and with the size or time of a file."""
    states = [timed(file, partial(_state, file)) for file in files]
    return hashlib.sha256(repr((dict(dataset_cfg), states)).encode()).hexdigest()


def _state(file: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where it is not there."""
    if not file.is_file():
        return None
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def read_parts(
    names: Sequence[str], make: Callable[[int], Info], workers: int, title: str, skipped: dict[str, str]
) -> dict[str, Info]:
    """Part ``make(index)`` of each good frame by its name, in order, read in threads, with a progress bar.

    Bad frames go into ``skipped`` with their reason.
    """
    limit = current_limit()

    def one(index: int) -> Info | DataError:
        try:
            with reads_within(limit):  # of a thread of its own
                return make(index)
        except DataError as error:
            return error

    found: dict[str, Info] = {}
    with reading_pool(workers) as pool:
        results = pool.map(one, range(len(names)))
        shown = tqdm(results, total=len(names), desc=title, disable=not sys.stderr.isatty())
        for name, result in zip(names, shown, strict=True):
            if isinstance(result, DataError):
                skipped[name] = str(result)
            else:
                found[name] = result
    return found


def read_mode(
    dataset: DatasetTemplate, make: Callable[[int], Info], workers: int, mode: str, report: PrepareReport
) -> list[Info]:
    """``read_parts`` of all frames of a data set; DataError where none is good."""
    names = [dataset.frame_name(index) for index in range(len(dataset))]
    found = read_parts(names, make, workers, mode, report.skipped)
    if not found:
        first = next(iter(report.skipped.values()), "the config lists none")
        raise DataError(
            f"{dataset.root_path} has no usable {report.unit[:-1]} for {mode}; the first fault: {first}"
        )
    return list(found.values())


def log_report(log: logging.Logger, report: PrepareReport, out: Path) -> None:
    """Log each skipped frame with its reason, and the report."""
    for name, reason in report.skipped.items():
        log.warning("skipped %s %s: %s", report.unit[:-1], name, reason)
    log.info("written to %s: %s", out, report)


def write_objects(
    out: Path, stem: str, points: np.ndarray, boxes: np.ndarray, names: Iterable[str], about: Info
) -> list[Info]:
    """Write the points of each box, relative to its middle, and return the database's entries.

    Args:
        out: folder that gets ``gt_database``.
        stem: beginning of the names of files.
        points: (N, C) of the frame.
        boxes: (K, 7) LiDAR boxes.
        names: their classes.
        about: keys of each entry that say which frame it is from.
    """
    entries = []
    covered = points_in_boxes_mask(points, boxes) if len(boxes) else ()
    for number, (name, box, mine) in enumerate(zip(names, boxes, covered, strict=True)):
        path = f"{DATABASE}/{stem}_{_file_name(str(name))}_{number}.bin"
        cloud = points[mine]
        cloud[:, :3] -= box[:3]
        with replacing(inside(out, path, "an object's file"), sync=False) as write:
            write(cloud.astype("<f4").tobytes())
        entries.append(
            {
                "name": str(name),
                "path": path,
                **about,
                "gt_idx": number,
                "box3d_lidar": box,
                "num_points_in_gt": len(cloud),
                "difficulty": 0,
            }
        )
    return entries


def _file_name(label: str) -> str:
    """``label`` as a part of a file name: its first characters, since a name has at most 255 bytes."""
    return label[:40].replace(" ", "_").replace("/", "_")


def by_class(entries: Sequence[Info]) -> dict[str, list[Info]]:
    """A database's entries by their class."""
    database: dict[str, list[Info]] = {}
    for entry in entries:
        database.setdefault(entry["name"], []).append(entry)
    return database


@contextmanager
def writing_infos(out: Path) -> Iterator[None]:
    """Within the block a folder that cannot be written is a DataError that says what to do."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(
            f"the info files cannot be written to {out} ({error}). Name another folder with --out DIR, and "
            "set DATA_CONFIG.INFO_ROOT to it"
        ) from error
