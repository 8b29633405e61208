"""Write ``pandaset_infos_{train,test}.pkl``, ``pandaset_dbinfos_train.pkl`` and ``gt_database/``.

A training reads PandaSet's own files; the infos are for other tools and for statistics, the database is for
gt_sampling. Each sweep's part is written as soon as it is done: an interrupted run continues from there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pcdet_freeze.datasets.augmentor.database import DATABASE as OBJECTS
from pcdet_freeze.datasets.file_formats.files import write_pickle
from pcdet_freeze.datasets.packed import packed_file
from pcdet_freeze.datasets.pandaset.dataset import PandaSetDataset
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    Info,
    PrepareReport,
    count_points,
    key_of,
    make_parts,
    parts_folder,
    points_of_classes,
    write_database,
    write_objects,
)
from pcdet_freeze.datasets.reading.timed_reads import limit_of, reads_within
from pcdet_freeze.datasets.registry import Config

DATABASE, PARTS = "gt_database", ".pandaset_parts"


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
    log, report = logger or logging.getLogger("pcdet_freeze"), PrepareReport("sweep")
    with reads_within(limit_of(dataset_cfg)):
        modes = {mode: _dataset(dataset_cfg, class_names, mode, log) for mode in ("train", "test")}
        out = Path(out_dir or modes["train"].info_root)
        with parts_folder(out, PARTS) as folder:
            parts = {
                mode: make_parts(_frames(dataset, mode, out), folder, workers, report)
                for mode, dataset in modes.items()
            }
            _write(out, parts, report, modes["train"].semantic_class_names)
            packed_file(OBJECTS, [out / "pandaset_dbinfos_train.pkl"], log)
    report.log(log, class_names, out)
    return report


def _dataset(dataset_cfg: Config, names: Sequence[str], mode: str, log: logging.Logger) -> PandaSetDataset:
    """The sweeps of a mode without augmentation, which may need the files that are written here."""
    sweeps = dataset_cfg.get("SWEEPS")
    if isinstance(sweeps, Mapping) and mode in sweeps:  # else the data set's settings say what is wrong
        sweeps = {"train": sweeps[mode], "test": sweeps[mode]}
    cfg = {**dataset_cfg, "SWEEPS": sweeps}
    return PandaSetDataset(cfg, names, training=False, logger=log)


def _frames(dataset: PandaSetDataset, mode: str, out: Path) -> Frames:
    def make(index: int) -> Info:
        sample = dataset.load_sample(index)
        objects = _objects(dataset, index, sample, out) if mode == "train" else []
        return {"info": _info(dataset, index, sample), "objects": objects}

    def key(index: int) -> str:
        sweep = dataset.sweeps[index]
        tables = [sweep.path(folder) for folder in ("lidar", "annotations/cuboids", "annotations/semseg")]
        return key_of([*tables, sweep.poses_path], dict(dataset.dataset_cfg))

    return Frames(mode, [dataset.frame_name(index) for index in range(len(dataset))], key, make)


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
        info["point_counts"] = count_points(sample["point_labels"], dataset.semantic_class_names)
    lines = dataset.lane_lines(index) if dataset.lane is not None else None
    if lines is not None:
        info["lane_lines"] = lines
    return info


def _objects(dataset: PandaSetDataset, index: int, sample: Info, out: Path) -> list[Info]:
    """Write the points of each box, and return the database's entries."""
    if "gt_boxes" not in sample:
        return []
    sweep, boxes, names = dataset.sweeps[index], sample["gt_boxes"], sample["gt_names"]
    entries = write_objects(out, DATABASE, sweep.name, sample["points"], boxes, names.tolist())
    return [entry | {"sequence": sweep.scene.name, "frame_idx": sweep.number} for entry in entries]


def _write(out: Path, parts: dict[str, list[Info]], report: PrepareReport, classes: Sequence[str]) -> None:
    for mode, found in parts.items():
        write_pickle(out / f"pandaset_infos_{mode}.pkl", [part["info"] for part in found])
    write_database(out / "pandaset_dbinfos_train.pkl", parts["train"], report)
    report.points = points_of_classes(parts["train"], classes)
