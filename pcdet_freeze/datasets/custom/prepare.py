"""Write ``custom_infos_<split>.pkl``, ``custom_dbinfos_train.pkl`` and ``gt_database/``.

The keys are OpenPCDet's, so its files can be read here and ours there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import yaml

from pcdet_freeze.datasets.custom.boxes import read_boxes
from pcdet_freeze.datasets.custom.dataset import CustomDataset
from pcdet_freeze.datasets.custom.frames import CustomFrames
from pcdet_freeze.datasets.file_formats.files import write_pickle
from pcdet_freeze.datasets.file_formats.info_files import folders_beside, read_frame_ids
from pcdet_freeze.datasets.frames import LABEL_KEYS
from pcdet_freeze.datasets.labels.lidar_annos import in_range
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    Info,
    PrepareReport,
    key_of,
    make_parts,
    parts_folder,
    write_database,
    write_objects,
)
from pcdet_freeze.datasets.reading.timed_reads import limit_of, reads_within, timed
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask

DATABASE, PARTS = "gt_database", ".custom_parts"
SPLITS = ("train", "val", "test")
LONG = 3.0
"""metres from which an anchor has the thresholds of cars"""


@dataclass
class CustomReport(PrepareReport):
    """``labels``: training frames with each label; ``anchors``: a line a class."""

    labels: dict[str, int] = field(default_factory=dict)
    anchors: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        labels = ", ".join(f"{number} {key}" for key, number in self.labels.items()) or "none"
        return f"{super().__str__()}; training frames with labels: {labels}"


def prepare_custom(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> CustomReport:
    """Read the frames of ``ImageSets/*.txt`` at DATA_PATH; write their infos and the training objects.

    ``out_dir`` defaults to INFO_ROOT, then to the data folder. A bad frame is left out, named with its
    reason, and counted. Finished frames of an interrupted run are not read again, unless their files or the
    config changed. Each file is written whole or not at all.

    Raises:
        ConfigError: faults of the config.
        DataError: a folder or a split file that is missing, no good frame, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log, report = logger or logging.getLogger("pcdet_freeze"), CustomReport()
    settings = CustomDataset.read_settings(dataset_cfg)
    with reads_within(limit_of(dataset_cfg)):
        root = Path(settings.data_path or ".")
        out = Path(out_dir or settings.info_root or root)
        frames = CustomFrames.of(root, settings)
        frames.check_folders()
        splits = read_splits(root, (settings.data_split.train, settings.data_split.test))
        train = settings.data_split.train
        with parts_folder(out, PARTS) as folder:
            found = make_parts(_frames(dataset_cfg, frames, splits, train, out), folder, workers, report)
            parts = {part["info"]["point_cloud"]["lidar_idx"]: part for part in found}
            pasted = [parts[frame] for frame in splits[train] if frame in parts]
            if not pasted:
                first = next(iter(report.skipped.values()), "it lists none")
                raise DataError(f"{root}/ImageSets/{train}.txt has no usable frame; the first fault: {first}")
            _write(out, splits, parts, report)
            write_database(out / f"custom_dbinfos_{train}.pkl", pasted, report)
    report.labels = _labels(pasted)
    report.anchors = anchors_of(pasted, np.array(settings.point_cloud_range, np.float32))
    _log(log, report, root, out, class_names)
    return report


def read_splits(root: Path, needed: Sequence[str]) -> dict[str, list[str]]:
    """Frame ids of each split that has a file in ImageSets; DataError where one of ``needed`` has none."""
    folder = root / "ImageSets"
    names = [name for name in dict.fromkeys((*needed, *SPLITS)) if _is_there(folder / f"{name}.txt")]
    missing = [f"{name}.txt" for name in dict.fromkeys(needed) if name not in names]
    if missing:
        beside = "" if timed(folder, folder.is_dir) else folders_beside(folder)
        raise DataError(
            f"{folder} must hold {' and '.join(missing)} (one frame id a line, the name of its point file "
            f"without the suffix), as DATA_CONFIG.DATA_SPLIT says{beside}"
        )
    return {name: read_frame_ids(folder / f"{name}.txt") for name in names}


def _is_there(path: Path) -> bool:
    return timed(path, path.is_file)


def _frames(
    dataset_cfg: Config, frames: CustomFrames, splits: dict[str, list[str]], train: str, out: Path
) -> Frames:
    """All frames of all splits, each once; those of ``train`` have objects."""
    ids = list(dict.fromkeys(frame for split in splits.values() for frame in split))
    pasted = set(splits[train])

    def key(index: int) -> str:
        return key_of(frames.files_of(ids[index]), dict(dataset_cfg), ids[index] in pasted)

    def make(index: int) -> Info:
        return _part(frames, ids[index], out if ids[index] in pasted else None)

    return Frames(" and ".join(splits), ids, key, make)


def _part(frames: CustomFrames, frame: str, out: Path | None) -> Info:
    """Info and database entries (if ``out``) of a frame, with OpenPCDet's keys."""
    sample = frames.sample(frame)
    points = sample["points"]
    info: Info = {"point_cloud": {"num_features": points.shape[1], "lidar_idx": frame}}
    part: Info = {"info": info, "objects": [], "labels": [key for key in frames.labels.keys if key in sample]}
    path = frames.boxes_path(frame)
    if _is_there(path):
        boxes, names = read_boxes(path)
        inside = points_in_boxes_mask(points, boxes, margin=0.0).sum(axis=1) if len(boxes) else np.zeros(0)
        info["annos"] = {
            "name": names,
            "gt_boxes_lidar": boxes,
            "num_points_in_gt": inside.astype(np.int32),
        }
        part["labels"].insert(0, "gt_boxes")
        if out is not None:
            part["objects"] = write_objects(out, DATABASE, frame, points, boxes, names.tolist())
    return part


def _write(out: Path, splits: dict[str, list[str]], parts: dict[str, Info], report: CustomReport) -> None:
    report.frames.clear()
    for split, ids in splits.items():
        infos = [parts[frame]["info"] for frame in ids if frame in parts]
        write_pickle(out / f"custom_infos_{split}.pkl", infos)
        report.frames[split] = len(infos)


def _labels(parts: Sequence[Info]) -> dict[str, int]:
    """How many frames have each label."""
    counts = {key: sum(key in part["labels"] for part in parts) for key in LABEL_KEYS}
    return {key: number for key, number in counts.items() if number}


def anchors_of(parts: Sequence[Info], limits: np.ndarray) -> list[str]:
    """Two lines for each class: its boxes, and an entry of ANCHOR_GENERATOR_CONFIG of their mean size."""
    annos = [part["info"]["annos"] for part in parts if "annos" in part["info"]]
    names = np.concatenate([anno["name"] for anno in annos]) if annos else np.zeros(0, str)
    boxes = np.concatenate([anno["gt_boxes_lidar"] for anno in annos]) if annos else np.zeros((0, 7))
    lines = []
    for name in dict.fromkeys(names.tolist()):
        own = boxes[names == name]
        away = len(own) - int(in_range(own, limits).sum())
        where = f", {away} of them outside POINT_CLOUD_RANGE in x or y" if away else ""
        lines.append(f"{name}: {len(own)} boxes{where}; an anchor of their mean size:\n{_anchor(name, own)}")
    return lines


def _anchor(name: str, boxes: np.ndarray) -> str:
    """Boxes (K, 7) of a class -> one line of YAML; thresholds as OpenPCDet has them for small and large."""
    size, bottom = boxes[:, 3:6].mean(axis=0), float((boxes[:, 2] - boxes[:, 5] / 2).mean())
    edges = ", ".join(f"{edge:.2f}" for edge in size)
    matched, unmatched = (0.6, 0.45) if size[0] > LONG else (0.5, 0.35)
    quoted = yaml.safe_dump([name], default_flow_style=True, width=10**6).strip()[1:-1]  # where YAML needs it
    return (
        f"- {{class_name: {quoted}, anchor_sizes: [[{edges}]], anchor_rotations: [0, 1.57], "
        f"anchor_bottom_heights: [{bottom:.2f}], align_center: False, feature_map_stride: 2, "
        f"matched_threshold: {matched}, unmatched_threshold: {unmatched}}}"
    )


def _log(
    log: logging.Logger, report: CustomReport, root: Path, out: Path, class_names: Sequence[str]
) -> None:
    if "gt_boxes" not in report.labels:
        folder = root / "labels"
        beside = "" if timed(folder, folder.is_dir) else folders_beside(folder)
        log.warning("no training frame has boxes in %s/<frame>.txt%s", folder, beside)
    for name in class_names:
        if name not in report.objects:
            known = ", ".join(report.objects) or "none"
            log.warning("the training frames have no box of the class %s; their classes: %s", name, known)
    for line in report.anchors:
        log.info("%s", line)
    report.log(log, [], out)
