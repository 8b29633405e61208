"""Random frames from a seed, through the real data processor, so that a benchmark needs no data set."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from pcdet_freeze.datasets.loader import register_all
from pcdet_freeze.datasets.registry import DATASETS, Sample
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.models import load_data_to_gpu
from pcdet_freeze.models.detectors.several_heads import sections_of_heads
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.rules import Count, whole
from pcdet_freeze.utils.settings.sections import Section, read_section

POINTS, BOXES, FRAMES = 27500, 16, 64
GROUP, REACH = 9, 0.1
"""points in a group, and their standard deviation in metres: as on surfaces, a pillar that has one point has
several"""
NO_LINE = 255
"""value of a lane map's cell without a line"""
USUAL_SIZE = (3.9, 1.6, 1.56)
"""length, width and height in metres of a class without an anchor in the config (KITTI's mean car)"""


@dataclass(frozen=True)
class SceneSettings(Section):
    """DATA_CONFIG.RANDOM_SCENES."""

    points: Count = POINTS
    """points in a frame"""
    boxes: Annotated[int, whole(0)] = BOXES
    seed: Annotated[int, whole(0)] = 0
    point_classes: Annotated[int, whole(0)] | None = None
    """null: as many as the config's own data set has"""


class RandomScenes(DatasetTemplate):
    """Random points and boxes with the range, features and processor of ``dataset_cfg``; no augmentation.

    The section ``RANDOM_SCENES`` sets POINTS and BOXES (in a frame) and SEED: frame i is a pure function of
    (SEED, i). Points lie in the range, with a density that decreases with the distance from the sensor; boxes
    have a random class, place and heading, and the size of their class in ``sizes``. With POINT_CLASSES: n,
    or where the data set of the config has n semantic classes, points are labelled by n slabs of height. With
    ``LANE.CELL_SIZE``, each frame has a lane map with one straight line.
    """

    def __init__(
        self,
        dataset_cfg: Mapping[str, Any],
        class_names: Sequence[str],
        training: bool = True,
        root_path: str | Path | None = ".",
        logger: logging.Logger | None = None,
        *,
        sizes: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        super().__init__({**dataset_cfg, "DATA_AUGMENTOR": None}, class_names, training, root_path, logger)
        section = dataset_cfg.get("RANDOM_SCENES") or {}
        settings, faults = read_section(SceneSettings, section, "DATA_CONFIG.RANDOM_SCENES")
        raise_faults(faults)
        assert settings is not None  # there were no faults
        self.points, self.boxes, self.seed = settings.points, settings.boxes, settings.seed
        given = settings.point_classes
        classes = _semantic_classes(dataset_cfg) if given is None else given
        self.semantic_class_names = tuple(f"slab {i}" for i in range(classes))
        self.lane_map_shape = _lane_map_shape(dataset_cfg, self.point_cloud_range)
        self.sizes = dict(sizes or {})

    def __len__(self) -> int:
        return FRAMES

    def load_sample(self, index: int) -> Sample:
        """Frame ``index``: points (N, C) and boxes (G, 7), LiDAR frame, metres, radians; labels of points."""
        rng = np.random.RandomState([self.seed, index])
        names = np.array(self.class_names)[rng.randint(len(self.class_names), size=self.boxes)]
        points = self._points(rng)
        labels = {"point_labels": self._labels(points)} if self.semantic_class_names else {}
        return {
            "frame_id": f"{index:06d}",
            "points": points,
            "gt_names": names,
            "gt_boxes": self._boxes(rng, names),
            **labels,
            **self._lane_map(),
        }

    def _points(self, rng: np.random.RandomState) -> np.ndarray:
        limits = self.point_cloud_range.astype(np.float64)
        farthest = float(np.abs(limits[[0, 1, 3, 4]]).max()) * 2**0.5
        found: list[np.ndarray] = []
        while sum(map(len, found)) < self.points:
            # uniform in the distance: density ~ 1 / distance
            distance, angle = rng.uniform(0, farthest, self.points), rng.uniform(-np.pi, np.pi, self.points)
            spots = np.stack([distance * np.cos(angle), distance * np.sin(angle)], axis=1)
            spread = rng.normal(0, REACH, (len(spots), GROUP, 2))
            ground = (spots[:, None] + spread).reshape(-1, 2)
            inside = (ground >= limits[:2]) & (ground < limits[3:5])
            found.append(ground[inside.all(axis=1)])
        ground = np.concatenate(found)[: self.points]
        height = rng.uniform(limits[2], limits[5], (len(ground), 1))
        others = rng.uniform(0, 1, (len(ground), len(self.point_feature_encoder.src_feature_list) - 3))
        return np.concatenate([ground, height, others], axis=1).astype(np.float32)

    def _labels(self, points: np.ndarray) -> np.ndarray:
        low, high, count = (
            self.point_cloud_range[2],
            self.point_cloud_range[5],
            len(self.semantic_class_names),
        )
        slabs = ((points[:, 2] - low) / (high - low) * count).astype(np.int64)
        return slabs.clip(0, count - 1)

    def _lane_map(self) -> Sample:
        if self.lane_map_shape is None:
            return {}
        lane_map = np.full(self.lane_map_shape, NO_LINE, np.uint8)
        lane_map[len(lane_map) // 2] = 0
        return {"lane_map": lane_map}

    def _boxes(self, rng: np.random.RandomState, names: np.ndarray) -> np.ndarray:
        limits = self.point_cloud_range
        sizes = np.array([self.sizes.get(name, USUAL_SIZE) for name in names]).reshape(-1, 3)
        centres = rng.uniform(limits[:2], limits[3:5], (len(names), 2))
        middle = np.full((len(names), 1), (limits[2] + limits[5]) / 2)
        headings = rng.uniform(-np.pi, np.pi, (len(names), 1))
        return np.concatenate([centres, middle, sizes, headings], axis=1).astype(np.float32)


def _semantic_classes(dataset_cfg: Mapping[str, Any]) -> int:
    """Number of semantic classes: those of the config, else those of its data set, else 0."""
    listed = (dataset_cfg.get("SEMANTIC") or {}).get("CLASSES")
    register_all()
    name = str(dataset_cfg.get("DATASET"))
    names: Sequence[str] = DATASETS.get(name).semantic_class_names if name in DATASETS else ()
    return len(listed or names)


def _lane_map_shape(dataset_cfg: Mapping[str, Any], limits: np.ndarray) -> tuple[int, int] | None:
    """(H, W): the range divided by LANE.CELL_SIZE; None without one."""
    cell = (dataset_cfg.get("LANE") or {}).get("CELL_SIZE")
    if not cell:
        return None
    columns, rows = np.rint((limits[3:5] - limits[:2]) / float(cell)).astype(int).tolist()
    return rows, columns


def sizes_of(model_cfg: Mapping[str, Any]) -> dict[str, list[float]]:
    """class -> [length, width, height] in metres of its first anchor; empty without anchors."""
    several = [section for _, section in sections_of_heads(model_cfg).values()]
    heads = [model_cfg.get("DENSE_HEAD") or {}, *several]
    anchors = [item for head in heads for item in head.get("ANCHOR_GENERATOR_CONFIG") or []]
    return {str(item["class_name"]): list(item["anchor_sizes"][0]) for item in anchors}


def make_batch(dataset: DatasetTemplate, batch_size: int, device: torch.device) -> dict[str, Any]:
    """Collate the first ``batch_size`` frames of ``dataset`` into a batch_dict on ``device``."""
    batch = dataset.collate_batch([dataset[index] for index in range(batch_size)])
    load_data_to_gpu(batch, device)
    return batch
