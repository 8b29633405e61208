"""gt_sampling: objects of other frames are pasted into the scene (SECOND, Yan et al. 2018, section 3.2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar

import numpy as np

from pcdet_freeze.datasets.augmentor.context import AugmentorContext
from pcdet_freeze.datasets.augmentor.database import (
    SKIP_HINT,
    Filters,
    Numbered,
    ObjectInfo,
    load_database,
    numbers_of,
    read_object,
)
from pcdet_freeze.datasets.frames import IGNORE, keep_points
from pcdet_freeze.datasets.reading.bad_data import OBJECT, BadItem
from pcdet_freeze.datasets.registry import AUGMENTORS, Sample
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.ops.iou import boxes_iou_bev
from pcdet_freeze.utils.settings.rules import Count, Name, at_least, length
from pcdet_freeze.utils.settings.sections import Section

Extra = Annotated[tuple[Annotated[float, at_least(0)], ...], length(3, "three numbers [x, y, z], 0 or more")]


@dataclass(frozen=True)
class BackupDatabase(Section):
    """BACKUP_DB_INFO: stands in where no file of DB_INFO_PATH exists."""

    db_info_path: Name
    num_point_features: Count
    """columns of its points, of which those of the scene are taken"""
    db_data_path: Any = None


@dataclass(frozen=True)
class SamplerSettings(Section):
    """Keys of gt_sampling, as in OpenPCDet."""

    not_built: ClassVar[tuple[str, ...]] = (
        "DATABASE_WITH_FAKELIDAR",
        "USE_SHARED_MEMORY",
        "FILTER_OBJ_POINTS_BY_TIMESTAMP",
        "IMG_AUG_TYPE",
        "AUG_USE_TYPE",
    )

    db_info_path: tuple[Name, ...]
    sample_groups: tuple[Numbered, ...]
    """class and number of candidates that are drawn"""
    num_point_features: Count
    prepare: Filters | None = None
    remove_extra_width: Extra | None = None
    """metres added to a pasted box before the points that it covers are removed"""
    limit_whole_scene: bool = False
    """objects that are in the scene count"""
    use_road_plane: bool = False
    """objects are set onto the frame's ``road_plane``; without one they keep their own height"""
    point_labels: dict[str, Any] | None = None
    """class -> semantic class, or its number, of pasted points; 255: none"""
    backup_db_info: BackupDatabase | None = None
    db_data_path: Any = None
    """is for a database in shared memory, which is not implemented, and is not read"""


@AUGMENTORS.register_as("gt_sampling")
class DatabaseSampler:
    """Pastes objects of the ground-truth database where they touch no other box.

    Where the scene has point labels, pasted points bring the semantic class called like their object
    (in either case: Car, car), or the one that ``POINT_LABELS`` says; 255 where there is none. A scene
    without box labels is left as it is: its objects are not known.

    Unlike OpenPCDet's, the draw keeps no state between samples: what is pasted depends on ``rng`` alone.
    """

    Settings = SamplerSettings

    def __init__(self, settings: SamplerSettings, context: AugmentorContext) -> None:
        groups = numbers_of(settings.sample_groups)
        # a list for more classes than are trained is normal
        self.groups = {name: number for name, number in groups.items() if name in context.class_names}
        self.root = context.root_path
        paths, self.features = _database_of(settings, self.root)
        self.extra_width = np.array(settings.remove_extra_width or [0.0, 0.0, 0.0], np.float32)
        self.limit_whole_scene = settings.limit_whole_scene
        self.use_road_plane = settings.use_road_plane
        self.point_labels = _point_labels(
            settings.point_labels or {}, list(self.groups), context.semantic_class_names
        )
        filters = settings.prepare or Filters()
        self.policy, self.logger = context.policy, context.logger
        self._warned: set[str] = set()
        self.database = load_database(paths, list(self.groups), filters, context.logger, self.policy)

    def __call__(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        chosen: list[ObjectInfo] = []
        bad: list[BadItem] = []
        boxes = sample.get("gt_boxes")
        if boxes is None:
            return sample
        for name, number in self.groups.items():
            if self.limit_whole_scene:
                number -= int(np.sum(np.asarray(sample["gt_names"], str) == name))
            drawn = self._draw(name, number, rng, bad)
            free = [drawn[i] for i in free_places(_boxes_of(drawn), boxes[:, :7])]
            chosen += free
            boxes = np.concatenate([boxes[:, :7], _boxes_of(free)])
        return self._paste(sample, chosen, bad) if chosen or bad else sample

    def _draw(
        self, name: str, number: int, rng: np.random.RandomState, bad: list[BadItem]
    ) -> list[ObjectInfo]:
        """Random entries of a class; those whose record cannot be read are added to ``bad``."""
        pool, found = self.database[name], []
        number = min(number, len(pool))
        for i in rng.choice(len(pool), number, replace=False) if number > 0 else ():
            try:
                found.append(pool[i])
            except DataError as error:
                bad.append(self._left_out(f"entry {pool.numbers[i]} of the database, {name}", error))
        return found

    def _left_out(self, name: str, error: DataError) -> BadItem:
        """What is counted for an object that cannot be used; DataError where the policy allows none."""
        if not self.policy.skip:
            raise DataError(f"{error}. {SKIP_HINT}") from error
        if name not in self._warned:
            self._warned.add(name)
            self.logger.warning("skipped database object %s: %s", name, error)
        return BadItem(OBJECT, name, str(error))

    @property
    def size(self) -> int:
        """Number of objects that may be pasted."""
        return sum(map(len, self.database.values()))

    def _read(self, chosen: list[ObjectInfo]) -> tuple[list[ObjectInfo], list[np.ndarray], list[BadItem]]:
        """The objects whose points can be read, their points, and the others."""
        usable, clouds, bad = [], [], []
        for info in chosen:
            try:
                clouds.append(read_object(self.root, info, self.features))
                usable.append(info)
            except DataError as error:
                bad.append(self._left_out(info["path"], error))
        return usable, clouds, bad

    def _paste(self, sample: Sample, drawn: list[ObjectInfo], bad_entries: list[BadItem]) -> Sample:
        chosen, clouds, bad_files = self._read(drawn)
        out, bad = dict(sample), [*bad_entries, *bad_files]
        if bad:
            out["bad_data"] = [*out.get("bad_data", []), *bad]
        if not chosen:
            return out
        boxes = _boxes_of(chosen)
        lift = self._lift(sample, boxes)
        boxes[:, 2] += lift
        columns = max(sample["points"].shape[1], 3)
        clouds = [cloud[:, :columns] for cloud in clouds]
        for cloud, box in zip(clouds, boxes, strict=True):
            cloud[:, :3] += box[:3]
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


def _database_of(settings: SamplerSettings, root: Path) -> tuple[list[Path], int]:
    """Info files, and columns of the objects' points: those of the config, or of its BACKUP_DB_INFO."""
    paths, backup = [root / name for name in settings.db_info_path], settings.backup_db_info
    if backup is not None and not any(path.exists() for path in paths):
        return [root / backup.db_info_path], backup.num_point_features
    return paths, settings.num_point_features


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


def _point_labels(given: Mapping[str, Any], classes: list[str], names: tuple[str, ...]) -> dict[str, int]:
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
