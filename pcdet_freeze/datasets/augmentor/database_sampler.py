"""gt_sampling: objects of other frames are pasted into the scene (SECOND, Yan et al. 2018, section 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.augmentor.context import AugmentorContext
from pcdet_freeze.datasets.augmentor.database import ObjectInfo, load_database, read_object
from pcdet_freeze.datasets.frames import IGNORE, keep_points
from pcdet_freeze.datasets.registry import AUGMENTORS, Config, Sample, check_keys, require
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.ops.iou import boxes_iou_bev

KNOWN = {
    "NAME",
    "DB_INFO_PATH",
    "PREPARE",
    "SAMPLE_GROUPS",
    "NUM_POINT_FEATURES",
    "REMOVE_EXTRA_WIDTH",
    "LIMIT_WHOLE_SCENE",
    "USE_ROAD_PLANE",
    "POINT_LABELS",
    "DB_DATA_PATH",
    "BACKUP_DB_INFO",
}
NOT_BUILT = {
    "DATABASE_WITH_FAKELIDAR",
    "USE_SHARED_MEMORY",
    "FILTER_OBJ_POINTS_BY_TIMESTAMP",
    "IMG_AUG_TYPE",
    "AUG_USE_TYPE",
}


@AUGMENTORS.register_as("gt_sampling")
class DatabaseSampler:
    """Pastes objects of the ground-truth database where they touch no other box.

    Keys as in OpenPCDet: ``DB_INFO_PATH`` (list), ``PREPARE`` (filter_by_min_points,
    filter_by_difficulty), ``SAMPLE_GROUPS`` (["Car:15", ...]: how many candidates are drawn),
    ``NUM_POINT_FEATURES``, ``REMOVE_EXTRA_WIDTH`` (metres added to a pasted box before the points that it
    covers are removed), ``LIMIT_WHOLE_SCENE`` (objects already there count), ``USE_ROAD_PLANE`` (objects
    are set onto the frame's ``road_plane``; a frame without one leaves them at their own height).
    Where the scene has point labels, pasted points bring the semantic class called like their object
    (whatever the case: Car, car), or the one that ``POINT_LABELS`` {class: semantic class or number} says;
    255 where there is none. A scene without box labels is left as it is: what stands in it is not known.
    ``BACKUP_DB_INFO`` (``DB_INFO_PATH``, ``NUM_POINT_FEATURES``) stands in where no file of ``DB_INFO_PATH``
    exists; of its points the scene's columns are taken.
    ``DB_DATA_PATH`` is for a database in shared memory, which is not built, and is not read.

    Unlike OpenPCDet's, the draw keeps no state between samples: what is pasted depends on ``rng`` alone.
    """

    def __init__(self, cfg: Config, context: AugmentorContext) -> None:
        check_keys("gt_sampling", cfg, KNOWN, NOT_BUILT)
        self.groups = _groups(require("gt_sampling", cfg, "SAMPLE_GROUPS"), context.class_names)
        self.root = context.root_path
        paths, self.features = _database_of(cfg, self.root)
        self.extra_width = np.array(cfg.get("REMOVE_EXTRA_WIDTH") or [0.0, 0.0, 0.0], np.float32)
        self.limit_whole_scene = bool(cfg.get("LIMIT_WHOLE_SCENE", False))
        self.use_road_plane = bool(cfg.get("USE_ROAD_PLANE", False))
        self.point_labels = _point_labels(
            cfg.get("POINT_LABELS") or {}, list(self.groups), context.semantic_class_names
        )
        self.database = load_database(paths, list(self.groups), cfg.get("PREPARE") or {}, context.logger)

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        chosen: list[ObjectInfo] = []
        boxes = sample.get("gt_boxes")
        if boxes is None:
            return sample
        for name, number in self.groups.items():
            if self.limit_whole_scene:
                number -= int(np.sum(np.asarray(sample["gt_names"], str) == name))
            drawn = self._draw(name, number, rng)
            free = [drawn[i] for i in free_places(_boxes_of(drawn), boxes[:, :7])]
            chosen += free
            boxes = np.concatenate([boxes[:, :7], _boxes_of(free)])
        return self._paste(sample, chosen) if chosen else sample

    def _draw(self, name: str, number: int, rng: np.random.RandomState) -> list[ObjectInfo]:
        pool = self.database[name]
        number = min(number, len(pool))
        return [pool[i] for i in rng.choice(len(pool), number, replace=False)] if number > 0 else []

    def _paste(self, sample: Sample, chosen: list[ObjectInfo]) -> Sample:
        boxes = _boxes_of(chosen)
        lift = self._lift(sample, boxes)
        boxes[:, 2] += lift
        columns = max(sample["points"].shape[1], 3)
        clouds = [read_object(self.root, info, self.features)[:, :columns] for info in chosen]
        for cloud, box in zip(clouds, boxes, strict=True):
            cloud[:, :3] += box[:3]
        out = dict(sample)
        self._clear(out, boxes)
        self._add_points(out, chosen, clouds)
        self._add_boxes(out, chosen, boxes)
        return out

    def _lift(self, sample: Sample, boxes: np.ndarray) -> np.ndarray:
        """How far (M,) each box must rise to stand on the road plane; zeros without a plane."""
        plane = sample.get("road_plane")
        if not self.use_road_plane or plane is None:
            return np.zeros(len(boxes), np.float32)
        calib = sample["calib"]
        feet = calib.lidar_to_rect(boxes[:, :3])
        # a x + b y + c z + d = 0 in the camera frame, y down
        feet[:, 1] = -(plane[3] + plane[0] * feet[:, 0] + plane[2] * feet[:, 2]) / plane[1]
        ground = calib.rect_to_lidar(feet)[:, 2]
        return (ground - (boxes[:, 2] - boxes[:, 5] / 2)).astype(np.float32)

    def _clear(self, sample: Sample, boxes: np.ndarray) -> None:
        """Drop the scene's points that the pasted boxes cover."""
        wide = boxes.copy()
        wide[:, 3:6] += self.extra_width
        keep_points(sample, ~points_in_boxes_mask(sample["points"][:, :3], wide).any(axis=0))

    def _add_points(self, sample: Sample, chosen: list[ObjectInfo], clouds: list[np.ndarray]) -> None:
        cloud = np.concatenate(clouds)
        if cloud.shape[1] != sample["points"].shape[1]:
            raise ConfigError(
                f"gt_sampling.NUM_POINT_FEATURES must be {sample['points'].shape[1]}, the number "
                f"of columns of the scene's points; got {self.features}"
            )
        sample["points"] = np.concatenate([cloud, sample["points"]])
        if sample.get("point_labels") is not None:
            labels = [self._label_of(info) for info in chosen]
            pasted = np.repeat(labels, [len(rows) for rows in clouds]).astype(sample["point_labels"].dtype)
            sample["point_labels"] = np.concatenate([pasted, sample["point_labels"]])

    def _label_of(self, info: ObjectInfo) -> int:
        own = info.get("point_label")
        return int(self.point_labels.get(info["name"], IGNORE) if own is None else own)

    @staticmethod
    def _add_boxes(sample: Sample, chosen: list[ObjectInfo], boxes: np.ndarray) -> None:
        columns = sample["gt_boxes"].shape[1]
        full = np.zeros((len(boxes), columns), np.float32)
        full[:, :7] = boxes
        for row, info in zip(full, chosen, strict=True):
            velocity = np.asarray(info["box3d_lidar"], np.float32)[7:columns]
            row[7 : 7 + len(velocity)] = velocity
        sample["gt_boxes"] = np.concatenate([sample["gt_boxes"], full])
        names = [info["name"] for info in chosen]
        sample["gt_names"] = np.array([*sample["gt_names"], *names], dtype=str)


def _database_of(cfg: Config, root: Path) -> tuple[list[Path], int]:
    """Info files, and columns of the objects' points: those of the config, or of its BACKUP_DB_INFO."""
    paths = [root / name for name in require("gt_sampling", cfg, "DB_INFO_PATH")]
    backup = cfg.get("BACKUP_DB_INFO")
    if backup and not any(path.exists() for path in paths):
        paths = [root / require("gt_sampling.BACKUP_DB_INFO", backup, "DB_INFO_PATH")]
        return paths, int(require("gt_sampling.BACKUP_DB_INFO", backup, "NUM_POINT_FEATURES"))
    return paths, int(require("gt_sampling", cfg, "NUM_POINT_FEATURES"))


def free_places(candidates: np.ndarray, taken: np.ndarray) -> list[int]:
    """Indices of the candidates (M, 7) that overlap in BEV neither ``taken`` (N, 7) nor one kept before."""
    if len(candidates) == 0:
        return []
    both = np.concatenate([taken, candidates]).astype(np.float32)
    overlap = boxes_iou_bev(candidates.astype(np.float32), both) > 0
    kept: list[int] = []
    for index, row in enumerate(overlap):
        if not row[: len(taken)].any() and not row[len(taken) :][kept].any():
            kept.append(index)
    return kept


def _boxes_of(infos: Sequence[ObjectInfo]) -> np.ndarray:
    rows = [np.asarray(info["box3d_lidar"], np.float32)[:7] for info in infos]
    return np.stack(rows) if rows else np.zeros((0, 7), np.float32)


def _point_labels(given: Config, classes: list[str], names: tuple[str, ...]) -> dict[str, int]:
    """Label of the points of each pasted class; ConfigError for a semantic class that does not exist."""
    own = {name.lower(): number for number, name in enumerate(names)}
    labels = {name: own[name.lower()] for name in classes if name.lower() in own}
    for name, value in given.items():
        number = own.get(value.lower(), -1) if isinstance(value, str) else value
        if not isinstance(number, int) or not (number == IGNORE or 0 <= number < (len(names) or IGNORE)):
            raise ConfigError(
                f"gt_sampling.POINT_LABELS.{name} must be one of the semantic classes "
                f"{', '.join(names) or '(none are named)'}, their number, or {IGNORE}; got {value!r}"
            )
        labels[name] = number
    return labels


def _groups(entries: Any, class_names: list[str]) -> dict[str, int]:
    groups: dict[str, int] = {}
    for entry in entries:
        name, colon, number = str(entry).partition(":")
        if not colon or not number.strip().isdigit():
            raise ConfigError(f"gt_sampling.SAMPLE_GROUPS must hold entries such as 'Car:15'; got {entry!r}")
        if name in class_names:  # a list for more classes than are trained is normal
            groups[name] = int(number)
    return groups
