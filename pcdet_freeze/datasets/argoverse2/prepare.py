"""Write ``argoverse2_infos_{train,test}.pkl``, ``argoverse2_dbinfos_train.pkl`` and ``gt_database/``.

A training reads the logs themselves; the infos are for statistics, the database is for gt_sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.argoverse2.logs import Argoverse2Dataset
from pcdet_freeze.datasets.file_formats.files import write_pickle
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
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

PARTS = ".argoverse2_parts"
Info = dict[str, Any]


def prepare_argoverse2(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the frames of both splits; write their infos and the objects of the training frames.

    ``out_dir`` defaults to INFO_ROOT, then to DATA_PATH. A bad frame is left out, named with its reason, and
    counted. Frames that an interrupted run finished are not read again, unless their files or the config
    changed. Each file is written whole or not at all.

    Raises:
        DataError: a split without logs, no good frame, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log, report = logger or logging.getLogger("pcdet_freeze"), PrepareReport()
    with reads_within(limit_of(dataset_cfg)):
        frames = {mode: _dataset(dataset_cfg, class_names, mode, log) for mode in ("train", "test")}
        out = Path(out_dir or frames["train"].info_root)
        with parts_folder(out, PARTS) as folder:
            for mode, dataset in frames.items():
                parts = make_parts(_frames(dataset, mode, out), folder, workers, report)
                write_pickle(out / f"argoverse2_infos_{mode}.pkl", [part["info"] for part in parts])
                if mode == "train":
                    write_database(out / "argoverse2_dbinfos_train.pkl", parts, report)
                    report.points = points_of_classes(parts, dataset.semantic_class_names)
    report.log(log, class_names, out)
    return report


def _dataset(dataset_cfg: Config, names: Sequence[str], mode: str, log: logging.Logger) -> Argoverse2Dataset:
    """The frames of a mode without augmentation, which may need the files that are written here."""
    cfg = dict(dataset_cfg)
    for key in ("DATA_SPLIT", "INTERVAL"):
        modes = cfg.get(key)
        if isinstance(modes, Mapping) and mode in modes:  # else the data set's settings say what is wrong
            cfg[key] = {"train": modes[mode], "test": modes[mode]}
    return Argoverse2Dataset(cfg, names, training=False, logger=log)


def _frames(dataset: Argoverse2Dataset, mode: str, out: Path) -> Frames:
    def make(index: int) -> Info:
        sample = dataset.load_sample(index)
        return {"info": _info(dataset, index, sample), "objects": _objects(sample, out, mode)}

    def key(index: int) -> str:
        sweep = dataset.sweeps[index]
        older = [other.path for other in dataset.older[index]]
        maps = sorted((sweep.log / "map").glob("*"))
        return key_of(
            [sweep.path, sweep.boxes_path, sweep.poses_path, *maps, *older], dict(dataset.dataset_cfg)
        )

    names = [dataset.frame_name(index) for index in range(len(dataset))]
    return Frames(mode, names, key, make)


def _info(dataset: Argoverse2Dataset, index: int, sample: Info) -> Info:
    sweep = dataset.sweeps[index]
    info: Info = {
        "log": sweep.log.name,
        "timestamp_ns": sweep.timestamp,
        "lidar_path": str(sweep.path.relative_to(dataset.root_path)),
        "sweeps": [other.timestamp for other in dataset.older[index]],
    }
    if "gt_boxes" in sample:
        info["annos"] = {"name": sample["gt_names"], "gt_boxes_lidar": sample["gt_boxes"]}
    if "point_labels" in sample:
        info["point_counts"] = count_points(sample["point_labels"], dataset.semantic_class_names)
    return info


def _objects(sample: Info, out: Path, mode: str) -> list[Info]:
    if mode != "train" or "gt_boxes" not in sample:
        return []
    frame = sample["frame_id"]
    entries = write_objects(
        out, "gt_database", frame, sample["points"], sample["gt_boxes"], sample["gt_names"].tolist()
    )
    return [entry | {"frame_id": frame} for entry in entries]
