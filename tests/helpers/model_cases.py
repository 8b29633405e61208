"""A PointPillar that is small enough to train in a test, and batches for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from pcdet_freeze.models import build_network

CLASS_NAMES = ["Car", "Pedestrian"]
RANGE = [0.0, -8.0, -3.0, 16.0, 8.0, 1.0]
CELLS = 32
POINTS = 4


def anchor(name: str, size: list[float], matched: float = 0.6, unmatched: float = 0.45) -> dict[str, Any]:
    return {
        "class_name": name,
        "anchor_sizes": [size],
        "anchor_rotations": [0, 1.57],
        "anchor_bottom_heights": [-1.78],
        "align_center": False,
        "feature_map_stride": 2,
        "matched_threshold": matched,
        "unmatched_threshold": unmatched,
    }


def model_config() -> dict[str, Any]:
    """A fresh ``cfg.MODEL``; a test may change it."""
    weights = {"cls_weight": 1.0, "loc_weight": 2.0, "dir_weight": 0.2, "code_weights": [1.0] * 7}
    return {
        "NAME": "PointPillar",
        "VFE": {"NAME": "PillarVFE", "NUM_FILTERS": [8]},
        "MAP_TO_BEV": {"NAME": "PointPillarScatter", "NUM_BEV_FEATURES": 8},
        "BACKBONE_2D": {
            "NAME": "BaseBEVBackbone",
            "LAYER_NUMS": [1, 1],
            "LAYER_STRIDES": [2, 2],
            "NUM_FILTERS": [8, 16],
            "UPSAMPLE_STRIDES": [1, 2],
            "NUM_UPSAMPLE_FILTERS": [8, 8],
        },
        "DENSE_HEAD": {
            "NAME": "AnchorHeadSingle",
            "USE_DIRECTION_CLASSIFIER": True,
            "DIR_OFFSET": 0.78539,
            "NUM_DIR_BINS": 2,
            "ANCHOR_GENERATOR_CONFIG": [
                anchor("Car", [3.9, 1.6, 1.56]),
                anchor("Pedestrian", [0.8, 0.6, 1.73], 0.5, 0.35),
            ],
            "TARGET_ASSIGNER_CONFIG": {"NAME": "AxisAlignedTargetAssigner"},
            "LOSS_CONFIG": {"LOSS_WEIGHTS": weights},
        },
        "POST_PROCESSING": {
            "RECALL_THRESH_LIST": [0.3, 0.5],
            "SCORE_THRESH": 0.1,
            "NMS_CONFIG": {
                "NMS_TYPE": "nms_gpu",
                "NMS_THRESH": 0.01,
                "NMS_PRE_MAXSIZE": 4096,
                "NMS_POST_MAXSIZE": 50,
            },
        },
    }


def dataset(cells: int = CELLS) -> Any:
    """All that build_network reads of a data set."""
    return SimpleNamespace(
        class_names=CLASS_NAMES,
        point_feature_encoder=SimpleNamespace(num_point_features=4),
        point_cloud_range=np.array(RANGE, dtype=np.float32),
        grid_size=np.array([cells, cells, 1]),
        voxel_size=[16.0 / cells, 16.0 / cells, 4.0],
        depth_downsample_factor=None,
    )


def small_model(config: dict[str, Any] | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_network(config or model_config(), len(CLASS_NAMES), dataset())


def batch(pillars: tuple[int, ...] = (60, 50), boxes: bool = True, seed: int = 0) -> dict[str, Any]:
    """Samples with so many pillars each, and a car and a pedestrian in each that has pillars."""
    random = np.random.RandomState(seed)
    coords = [cells_of(random, sample, count) for sample, count in enumerate(pillars)]
    coords_all = np.concatenate(coords).astype(np.int32)
    counts = random.randint(1, POINTS + 1, len(coords_all)).astype(np.int32)
    voxels = random.uniform(-0.25, 0.25, (len(coords_all), POINTS, 4)).astype(np.float32)
    voxels[..., 0] += coords_all[:, None, 3] * 0.5 + 0.25
    voxels[..., 1] += coords_all[:, None, 2] * 0.5 - 7.75
    voxels[np.arange(POINTS) >= counts[:, None]] = 0
    gt_boxes = np.zeros((len(pillars), 2 if boxes else 0, 8), dtype=np.float32)
    for sample, count in enumerate(pillars):
        if boxes and count:
            gt_boxes[sample, 0] = [8, 1, -1, 3.9, 1.6, 1.56, 0.3, 1]
            gt_boxes[sample, 1] = [4, -3, -0.9, 0.8, 0.6, 1.73, -2.0, 2]
    return {
        "voxels": torch.from_numpy(voxels),
        "voxel_coords": torch.from_numpy(coords_all),
        "voxel_num_points": torch.from_numpy(counts),
        "gt_boxes": torch.from_numpy(gt_boxes),
        "batch_size": len(pillars),
    }


def cells_of(random: np.random.RandomState, sample: int, count: int) -> np.ndarray:
    """``count`` different cells of a sample, (count, 4) [sample, z, y, x]."""
    flat = random.permutation(CELLS * CELLS)[:count]
    columns = [np.full(count, sample), np.zeros(count, dtype=np.int64), flat // CELLS, flat % CELLS]
    return np.stack(columns, axis=1)
