"""Write ``pandaset_infos_{train,test}.pkl``, ``pandaset_dbinfos_train.pkl`` and ``gt_database/``.

A training reads PandaSet's own files; the infos are for other tools and for statistics, the database is for
gt_sampling. Each sweep's part is written as soon as it is done: an interrupted run continues from there.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from pcdet_freeze.datasets.pandaset.dataset import PandaSetDataset
from pcdet_freeze.datasets.prepare_modes import Preparation, label_infos, objects_of, prepare_modes
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    Info,
    PrepareReport,
    key_of,
)
from pcdet_freeze.datasets.registry import Config


def prepare_pandaset(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the sweeps of ``SWEEPS`` at DATA_PATH; write their infos and the objects of the training sweeps.

    See :func:`~pcdet_freeze.datasets.prepare_modes.prepare_modes`.
    """
    preparation = Preparation("pandaset", "sweep", _dataset, _frames)
    return prepare_modes(preparation, dataset_cfg, class_names, out_dir, workers, logger)


def _dataset(dataset_cfg: Config, names: Sequence[str], mode: str, log: logging.Logger) -> PandaSetDataset:
    """The sweeps of a mode without augmentation, which may need the files that are written here."""
    sweeps = dataset_cfg.get("SWEEPS")
    if isinstance(sweeps, Mapping) and mode in sweeps:  # else the data set's settings say what is wrong
        sweeps = {"train": sweeps[mode], "test": sweeps[mode]}
    cfg = {**dataset_cfg, "SWEEPS": sweeps}
    return PandaSetDataset(cfg, names, training=False, logger=log)


def _frames(dataset: PandaSetDataset, mode: str, out: Path) -> Frames:
    def make(index: int) -> Info:
        sample, sweep = dataset.load_sample(index), dataset.sweeps[index]
        objects = []
        if mode == "train":
            objects = objects_of(sample, out, sweep.name, sequence=sweep.scene.name, frame_idx=sweep.number)
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
        **label_infos(sample, dataset.semantic_class_names),
    }
    lines = dataset.lane_lines(index) if dataset.lane is not None else None
    if lines is not None:
        info["lane_lines"] = lines
    return info
