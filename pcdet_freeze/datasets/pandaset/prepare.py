"""Write ``pandaset_infos_{train,test}.pkl``, ``pandaset_dbinfos_train.pkl`` and ``gt_database/``.

A training reads PandaSet's own files; the infos are for other tools and for statistics, the database is for
gt_sampling. Each sweep's part is written as soon as it is done: an interrupted run continues from there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.augmentor.database import DATABASE as OBJECTS
from pcdet_freeze.datasets.files import write_pickle
from pcdet_freeze.datasets.packed import packed_file
from pcdet_freeze.datasets.pandaset.dataset import PandaSetDataset
from pcdet_freeze.datasets.pandaset.sweep import Sweep
from pcdet_freeze.datasets.prepare_parts import (
    HOW_TO_WRITE,
    each_part,
    kept_part,
    listed,
    part_key,
    write_database,
    write_objects,
)
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.timed_reads import limit_of, reads_within
from pcdet_freeze.errors import DataError

DATABASE, PARTS = "gt_database", ".pandaset_parts"
Info = dict[str, Any]


@dataclass
class PrepareReport:
    """What was written: sweeps a mode, database objects a class, points a class, bad sweeps with a reason."""

    frames: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    points: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return (
            f"sweeps: {listed(self.frames)}; objects in the database: {listed(self.objects)}; points of the "
            f"training sweeps: {listed(self.points)}; skipped sweeps: {len(self.skipped)}"
        )


def prepare_pandaset(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the sweeps of ``SWEEPS`` at DATA_PATH; write their infos and the objects of the training sweeps.

    ``out_dir`` defaults to INFO_ROOT, then to the data folder. A bad sweep is left out, named with its
    reason, and counted. Finished sweeps of an interrupted run are not read again, unless their files or the
    config changed. Each file is written whole or not at all.

    Raises:
        DataError: a sweep that is not there, no good sweep, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log = logger or logging.getLogger("pcdet_freeze")
    report = PrepareReport()
    with reads_within(limit_of(dataset_cfg)):
        modes = {mode: _dataset(dataset_cfg, class_names, mode, log) for mode in ("train", "test")}
        out = Path(out_dir or modes["train"].info_root)
        try:
            out.mkdir(parents=True, exist_ok=True)
            parts = {mode: _parts(modes[mode], mode, out, workers, report) for mode in modes}
            _write(out, parts, report, modes["train"].semantic_class_names)
            packed_file(OBJECTS, [out / "pandaset_dbinfos_train.pkl"], log)
            shutil.rmtree(out / PARTS, ignore_errors=True)
        except OSError as error:
            raise DataError(f"the info files cannot be written to {out} ({error}). {HOW_TO_WRITE}") from error
    for name, reason in report.skipped.items():
        log.warning("skipped sweep %s: %s", name, reason)
    for name in class_names:
        if name not in report.objects:
            log.warning("the training sweeps have no %s: gt_sampling will have none to paste", name)
    log.info("written to %s: %s", out, report)
    return report


def _dataset(dataset_cfg: Config, names: Sequence[str], mode: str, log: logging.Logger) -> PandaSetDataset:
    """The sweeps of a mode without augmentation, which may need the files that are written here."""
    sweeps = dataset_cfg.get("SWEEPS")
    if isinstance(sweeps, Mapping) and mode in sweeps:  # else the data set's settings say what is wrong
        sweeps = {"train": sweeps[mode], "test": sweeps[mode]}
    cfg = {**dataset_cfg, "SWEEPS": sweeps}
    return PandaSetDataset(cfg, names, training=False, logger=log)


def _parts(dataset: PandaSetDataset, mode: str, out: Path, workers: int, report: PrepareReport) -> list[Info]:
    """The part of each good sweep, in order; the bad ones go into the report."""

    def one(index: int) -> Info:
        return _part(dataset, index, out, pasted=mode == "train")

    found = each_part(range(len(dataset)), one, workers, mode, dataset.frame_name, report.skipped)
    if not found:
        first = next(iter(report.skipped.values()), "SWEEPS lists none")
        raise DataError(f"{dataset.root_path} has no usable sweep for {mode}; the first fault: {first}")
    return found


def _part(dataset: PandaSetDataset, index: int, out: Path, pasted: bool) -> Info:
    """Info and database entries of a sweep: those that an earlier run finished, or new ones."""
    sweep = dataset.sweeps[index]
    path = out / PARTS / f"{sweep.name}_{'train' if pasted else 'test'}.pkl"
    # its files, and the poses of its scene
    tables = [sweep.path(folder) for folder in ("lidar", "annotations/cuboids", "annotations/semseg")]
    key = part_key(dataset.dataset_cfg, [*tables, sweep.poses_path])

    def make() -> Info:
        sample = dataset.load_sample(index)
        objects = _objects(out, sweep, sample) if pasted else []
        return {"info": _info(dataset, index, sample), "objects": objects}

    return kept_part(path, key, make)


def _info(dataset: PandaSetDataset, index: int, sample: Info) -> Info:
    """OpenPCDet's keys, and what our labels hold: boxes, points a class, lane lines."""
    sweep = dataset.sweeps[index]
    info: Info = {
        "sequence": sweep.scene.name,
        "frame_idx": sweep.number,
        **{
            key: str(sweep.path(folder).relative_to(dataset.root_path))
            for key, folder in (("lidar_path", "lidar"), ("cuboids_path", "annotations/cuboids"))
        },
    }
    if "gt_boxes" in sample:
        info["annos"] = {"name": sample["gt_names"], "gt_boxes_lidar": sample["gt_boxes"]}
    if "point_labels" in sample:
        counts = np.bincount(sample["point_labels"], minlength=256)[: len(dataset.semantic_class_names)]
        info["point_counts"] = counts
    lines = dataset.lane_lines(index) if dataset.lane is not None else None
    if lines is not None:
        info["lane_lines"] = lines
    return info


def _objects(out: Path, sweep: Sweep, sample: Info) -> list[Info]:
    """Write the points of each box, relative to its middle, and return the database's entries."""
    if "gt_boxes" not in sample:
        return []
    more = {"sequence": sweep.scene.name, "frame_idx": sweep.number, "difficulty": 0}
    entries = write_objects(
        out, DATABASE, sweep.name, sample["gt_names"], sample["gt_boxes"], sample["points"]
    )
    return [{**entry, **more} for entry in entries]


def _write(out: Path, parts: dict[str, list[Info]], report: PrepareReport, classes: Sequence[str]) -> None:
    for mode, found in parts.items():
        write_pickle(out / f"pandaset_infos_{mode}.pkl", [part["info"] for part in found])
        report.frames[mode] = len(found)
    entries = [entry for part in parts["train"] for entry in part["objects"]]
    report.objects = write_database(out / "pandaset_dbinfos_train.pkl", entries)
    counts = [part["info"]["point_counts"] for part in parts["train"] if "point_counts" in part["info"]]
    if counts:
        report.points = dict(zip(classes, np.sum(counts, axis=0).tolist(), strict=True))
