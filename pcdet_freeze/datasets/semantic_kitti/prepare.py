"""Write ``semantic_kitti_infos_{train,test}.pkl``: the sweeps, their files, and their points of each class.

A training does not need them: it reads the data set's own files. `prepare` reads every file once, so that a
damaged one is known before a training begins, and counts the classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pcdet_freeze.datasets.prepare_modes import Preparation, label_infos, prepare_modes
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    Info,
    PrepareReport,
    key_of,
)
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.semantic_kitti.dataset import NUM_FEATURES, SemanticKittiDataset


def prepare_semantic_kitti(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the sweeps of ``SEQUENCES`` at DATA_PATH and write their infos.

    See :func:`~pcdet_freeze.datasets.prepare_modes.prepare_modes`.
    """
    preparation = Preparation("semantic_kitti", "sweep", _dataset, _frames, has_objects=False)
    return prepare_modes(preparation, dataset_cfg, class_names, out_dir, workers, logger)


def _dataset(
    dataset_cfg: Config, names: Sequence[str], mode: str, log: logging.Logger
) -> SemanticKittiDataset:
    """The sweeps of a mode, without the requirements of a training."""
    numbers = SemanticKittiDataset.read_settings(dataset_cfg).sequences.of(mode == "train")
    sequences = {"train": list(numbers), "test": list(numbers)}
    return SemanticKittiDataset({**dataset_cfg, "SEQUENCES": sequences}, names, training=False, logger=log)


def _frames(dataset: SemanticKittiDataset, mode: str, out: Path) -> Frames:
    def key(index: int) -> str:
        sweep = dataset.sweeps[index]
        return key_of([sweep.points, sweep.labels], dict(dataset.dataset_cfg))

    names = [sweep.name for sweep in dataset.sweeps]
    return Frames(mode, names, key, lambda index: {"info": _info(dataset, index)})


def _info(dataset: SemanticKittiDataset, index: int) -> Info:
    sweep, sample = dataset.sweeps[index], dataset.load_sample(index)
    info: Info = {
        "point_cloud": {"num_features": NUM_FEATURES, "lidar_idx": sweep.name},
        "sequence": sweep.sequence.name,
        "lidar_path": str(sweep.points.relative_to(dataset.root_path)),
        "num_points": len(sample["points"]),
    }
    if "point_labels" in sample:
        info["label_path"] = str(sweep.labels.relative_to(dataset.root_path))
    return info | label_infos(sample, dataset.semantic_class_names)
