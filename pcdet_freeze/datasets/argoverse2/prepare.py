"""Write ``argoverse2_infos_{train,test}.pkl``, ``argoverse2_dbinfos_train.pkl`` and ``gt_database/``.

A training reads the logs themselves; the infos are for statistics, the database is for gt_sampling.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.argoverse2.logs import Argoverse2Dataset
from pcdet_freeze.datasets.prepare_modes import Preparation, label_infos, objects_of, prepare_modes
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    PrepareReport,
    key_of,
)
from pcdet_freeze.datasets.registry import Config

Info = dict[str, Any]


def prepare_argoverse2(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the frames of both splits; write their infos and the objects of the training frames.

    See :func:`~pcdet_freeze.datasets.prepare_modes.prepare_modes`.
    """
    preparation = Preparation("argoverse2", "frame", _dataset, _frames)
    return prepare_modes(preparation, dataset_cfg, class_names, out_dir, workers, logger)


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
        frame = sample["frame_id"]
        objects = objects_of(sample, out, frame, frame_id=frame) if mode == "train" else []
        return {"info": _info(dataset, index, sample), "objects": objects}

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
    return info | label_infos(sample, dataset.semantic_class_names)
