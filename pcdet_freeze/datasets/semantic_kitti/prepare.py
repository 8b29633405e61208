"""Write ``semantic_kitti_infos_{train,test}.pkl``: the sweeps, their files, and their points of each class.

A training does not need them: it reads the data set's own files. `prepare` reads every file once, so that a
damaged one is known before a training begins, and counts the classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.files import write_pickle
from pcdet_freeze.datasets.prepared import (
    Info,
    Parts,
    PrepareReport,
    key_of,
    log_report,
    read_mode,
    writing_infos,
)
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.semantic_kitti.dataset import NUM_FEATURES, SemanticKittiDataset
from pcdet_freeze.datasets.timed_reads import limit_of, reads_within

PARTS = ".semantic_kitti_parts"


def prepare_semantic_kitti(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the sweeps of ``SEQUENCES`` at DATA_PATH and write their infos.

    ``out_dir`` defaults to INFO_ROOT, then to the data folder. A bad sweep is left out, named with its
    reason, and counted. Finished sweeps of an interrupted run are not read again, unless their files or the
    config changed. Each file is written whole or not at all.

    Raises:
        DataError: a sequence that is not there, no good sweep, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log = logger or logging.getLogger("pcdet_freeze")
    report = PrepareReport(unit="sweeps")
    with reads_within(limit_of(dataset_cfg)):
        modes = {mode: _dataset(dataset_cfg, class_names, mode, log) for mode in ("train", "test")}
        out = Path(out_dir or modes["train"].info_root)
        with writing_infos(out):
            found = {
                mode: read_mode(frames, partial(_part, frames, out), workers, mode, report)
                for mode, frames in modes.items()
            }
            for mode, parts in found.items():
                write_pickle(out / f"semantic_kitti_infos_{mode}.pkl", [part["info"] for part in parts])
                report.frames[mode] = len(parts)
            Parts(out / PARTS).delete()
    counts = [part["info"]["point_counts"] for part in found["train"] if "point_counts" in part["info"]]
    if counts:
        names = modes["train"].semantic_class_names
        report.points = dict(zip(names, np.sum(counts, axis=0).tolist(), strict=True))
    log_report(log, report, out)
    return report


def _dataset(
    dataset_cfg: Config, names: Sequence[str], mode: str, log: logging.Logger
) -> SemanticKittiDataset:
    """The sweeps of a mode, without the requirements of a training."""
    numbers = SemanticKittiDataset.read_settings(dataset_cfg).sequences.of(mode == "train")
    sequences = {"train": list(numbers), "test": list(numbers)}
    return SemanticKittiDataset({**dataset_cfg, "SEQUENCES": sequences}, names, training=False, logger=log)


def _part(dataset: SemanticKittiDataset, out: Path, index: int) -> Info:
    sweep = dataset.sweeps[index]
    key = key_of(dataset.dataset_cfg, [sweep.points, sweep.labels])
    return Parts(out / PARTS).get(sweep.name, key, lambda: {"info": _info(dataset, index)})


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
        counts = np.bincount(sample["point_labels"], minlength=256)[: len(dataset.semantic_class_names)]
        info["point_counts"] = counts
    return info
