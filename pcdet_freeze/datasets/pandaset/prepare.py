"""Write ``pandaset_infos_{train,test}.pkl``, ``pandaset_dbinfos_train.pkl`` and ``gt_database/``.

A training reads PandaSet's own files; the infos are for other tools and for statistics, the database is for
gt_sampling. Each sweep's part is written as soon as it is done: an interrupted run continues from there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.files import write_pickle
from pcdet_freeze.datasets.pandaset.dataset import PandaSetDataset
from pcdet_freeze.datasets.pandaset.sweep import Sweep
from pcdet_freeze.datasets.prepared import (
    Info,
    Parts,
    PrepareReport,
    by_class,
    key_of,
    log_report,
    read_mode,
    write_objects,
    writing_infos,
)
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.timed_reads import limit_of, reads_within

PARTS = ".pandaset_parts"


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
    report = PrepareReport(unit="sweeps")
    with reads_within(limit_of(dataset_cfg)):
        modes = {mode: _dataset(dataset_cfg, class_names, mode, log) for mode in ("train", "test")}
        out = Path(out_dir or modes["train"].info_root)
        with writing_infos(out):
            parts = {
                mode: read_mode(found, partial(_part, found, out, mode == "train"), workers, mode, report)
                for mode, found in modes.items()
            }
            _write(out, parts, report, modes["train"].semantic_class_names)
            Parts(out / PARTS).delete()
    for name in class_names:
        if name not in report.objects:
            log.warning("the training sweeps have no %s: gt_sampling will have none to paste", name)
    log_report(log, report, out)
    return report


def _dataset(dataset_cfg: Config, names: Sequence[str], mode: str, log: logging.Logger) -> PandaSetDataset:
    """The sweeps of a mode without augmentation, which may need the files that are written here."""
    sweeps = dataset_cfg.get("SWEEPS")
    if isinstance(sweeps, Mapping) and mode in sweeps:  # else the data set's settings say what is wrong
        sweeps = {"train": sweeps[mode], "test": sweeps[mode]}
    cfg = {**dataset_cfg, "SWEEPS": sweeps}
    return PandaSetDataset(cfg, names, training=False, logger=log)


def _part(dataset: PandaSetDataset, out: Path, pasted: bool, index: int) -> Info:
    """Info and database entries of a sweep: those that an earlier run finished, or new ones."""
    sweep = dataset.sweeps[index]

    def make() -> Info:
        sample = dataset.load_sample(index)
        objects = _objects(out, sweep, sample) if pasted else []
        return {"info": _info(dataset, index, sample), "objects": objects}

    name = f"{sweep.name}_{'train' if pasted else 'test'}"
    return Parts(out / PARTS).get(name, _key(dataset, sweep), make)


def _key(dataset: PandaSetDataset, sweep: Sweep) -> str:
    """Changes with the config, with the sweep's files and with the poses of its scene."""
    tables = [sweep.path(folder) for folder in ("lidar", "annotations/cuboids", "annotations/semseg")]
    return key_of(dataset.dataset_cfg, [*tables, sweep.poses_path])


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
    if "gt_boxes" not in sample:
        return []
    about = {"sequence": sweep.scene.name, "frame_idx": sweep.number}
    return write_objects(out, sweep.name, sample["points"], sample["gt_boxes"], sample["gt_names"], about)


def _write(out: Path, parts: dict[str, list[Info]], report: PrepareReport, classes: Sequence[str]) -> None:
    for mode, found in parts.items():
        write_pickle(out / f"pandaset_infos_{mode}.pkl", [part["info"] for part in found])
        report.frames[mode] = len(found)
    database = by_class([entry for part in parts["train"] for entry in part["objects"]])
    write_pickle(out / "pandaset_dbinfos_train.pkl", database)
    report.objects = {name: len(entries) for name, entries in database.items()}
    counts = [part["info"]["point_counts"] for part in parts["train"] if "point_counts" in part["info"]]
    if counts:
        report.points = dict(zip(classes, np.sum(counts, axis=0).tolist(), strict=True))
