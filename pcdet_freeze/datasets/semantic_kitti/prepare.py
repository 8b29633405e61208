"""Write ``semantic_kitti_infos_{train,test}.pkl``: the sweeps, their files, and their points of each class.

A training does not need them: it reads the data set's own files. `prepare` reads every file once, so that a
damaged one is known before a training begins, and counts the classes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pcdet_freeze.datasets.file_formats.files import write_pickle
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    Info,
    PrepareReport,
    count_points,
    key_of,
    make_parts,
    parts_folder,
    points_of_classes,
)
from pcdet_freeze.datasets.reading.timed_reads import limit_of, reads_within
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.semantic_kitti.dataset import NUM_FEATURES, SemanticKittiDataset

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
    log, report = logger or logging.getLogger("pcdet_freeze"), PrepareReport("sweep")
    with reads_within(limit_of(dataset_cfg)):
        modes = {mode: _dataset(dataset_cfg, class_names, mode, log) for mode in ("train", "test")}
        out = Path(out_dir or modes["train"].info_root)
        with parts_folder(out, PARTS) as folder:
            for mode, dataset in modes.items():
                parts = make_parts(_frames(dataset, mode), folder, workers, report)
                write_pickle(out / f"semantic_kitti_infos_{mode}.pkl", [part["info"] for part in parts])
                if mode == "train":
                    report.points = points_of_classes(parts, dataset.semantic_class_names)
    report.log(log, [], out)
    return report


def _dataset(
    dataset_cfg: Config, names: Sequence[str], mode: str, log: logging.Logger
) -> SemanticKittiDataset:
    """The sweeps of a mode, without the requirements of a training."""
    numbers = SemanticKittiDataset.read_settings(dataset_cfg).sequences.of(mode == "train")
    sequences = {"train": list(numbers), "test": list(numbers)}
    return SemanticKittiDataset({**dataset_cfg, "SEQUENCES": sequences}, names, training=False, logger=log)


def _frames(dataset: SemanticKittiDataset, mode: str) -> Frames:
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
        info["point_counts"] = count_points(sample["point_labels"], dataset.semantic_class_names)
    return info
