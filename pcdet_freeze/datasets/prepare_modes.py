"""``prepare`` of data sets that read their own files: the frames of train and of test, one after another."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.augmentor.database import DATABASE
from pcdet_freeze.datasets.file_formats.files import write_pickle
from pcdet_freeze.datasets.packed import packed_file
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    Info,
    PrepareReport,
    count_points,
    make_parts,
    parts_folder,
    points_of_classes,
    write_database,
    write_objects,
)
from pcdet_freeze.datasets.reading.timed_reads import limit_of, reads_within
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.template import DatasetTemplate

Parts = Mapping[str, list[Info]]
"""mode -> parts of its good frames"""


@dataclass(frozen=True)
class Preparation:
    """What ``prepare`` of one data set does."""

    name: str
    """begins the names of the info files"""
    unit: str
    """what the data set calls a frame"""
    dataset: Callable[[Config, Sequence[str], str, logging.Logger], DatasetTemplate]
    """(DATA_CONFIG, classes, mode, log) -> its frames without augmentation, which may need what is written"""
    frames: Callable[[Any, str, Path], Frames]
    """(data set, mode, folder to write to) -> how the part of each frame is made"""
    has_objects: bool = True
    """whether parts have ``objects``, of which gt_sampling gets a database"""


def prepare_modes(
    preparation: Preparation,
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the frames of train and test at DATA_PATH; write their infos and the objects of the training.

    ``out_dir`` defaults to INFO_ROOT, then to the data folder. A bad frame is left out, named with its
    reason, and counted. Finished frames of an interrupted run are not read again, unless their files or the
    config changed. Each file is written whole or not at all.

    Raises:
        DataError: a split without frames, no good frame, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log, report = logger or logging.getLogger("pcdet_freeze"), PrepareReport(preparation.unit)
    with reads_within(limit_of(dataset_cfg)):
        modes = {mode: preparation.dataset(dataset_cfg, class_names, mode, log) for mode in ("train", "test")}
        out = Path(out_dir or modes["train"].info_root)
        with parts_folder(out, f".{preparation.name}_parts") as folder:
            parts = {
                mode: make_parts(preparation.frames(dataset, mode, out), folder, workers, report)
                for mode, dataset in modes.items()
            }
            for mode, found in parts.items():
                write_pickle(out / f"{preparation.name}_infos_{mode}.pkl", [part["info"] for part in found])
            if preparation.has_objects:
                database = out / f"{preparation.name}_dbinfos_train.pkl"
                write_database(database, parts["train"], report)
                packed_file(DATABASE, [database], log)
            report.points = points_of_classes(parts["train"], modes["train"].semantic_class_names)
    report.log(log, class_names if preparation.has_objects else [], out)
    return report


def label_infos(sample: Info, classes: Sequence[str]) -> Info:
    """What the info of a frame says of its labels: boxes, and points of each class."""
    info: Info = {}
    if "gt_boxes" in sample:
        info["annos"] = {"name": sample["gt_names"], "gt_boxes_lidar": sample["gt_boxes"]}
    if "point_labels" in sample:
        info["point_counts"] = count_points(sample["point_labels"], classes)
    return info


def objects_of(sample: Info, out: Path, frame: str, **more: object) -> list[Info]:
    """Write the points of each box below ``out``; the database's entries, each with ``more``."""
    if "gt_boxes" not in sample:
        return []
    names = sample["gt_names"].tolist()
    entries = write_objects(out, "gt_database", frame, sample["points"], sample["gt_boxes"], names)
    return [entry | more for entry in entries]
