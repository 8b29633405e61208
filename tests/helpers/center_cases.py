"""CenterPoints that are small enough to train in a test, and batches for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from model_cases import RANGE, batch, model_config

from pcdet_freeze.models import build_network

CLASS_NAMES = ["Car", "Pedestrian", "Cyclist"]
GROUPS = [["Car"], ["Pedestrian", "Cyclist"]]
VFES = ["PillarVFE", "DynPillarVFE"]


def center_config(vfe: str = "DynPillarVFE", velocity: bool = False) -> dict[str, Any]:
    """A fresh ``cfg.MODEL``; a test may change it."""
    columns = {"center": 2, "center_z": 1, "dim": 3, "rot": 2} | ({"vel": 2} if velocity else {})
    config = model_config()
    config["NAME"] = "CenterPoint"
    config["VFE"] = {"NAME": vfe, "NUM_FILTERS": [8, 8]}
    config["DENSE_HEAD"] = {
        "NAME": "CenterHead",
        "CLASS_NAMES_EACH_HEAD": GROUPS,
        "SHARED_CONV_CHANNEL": 8,
        "USE_BIAS_BEFORE_NORM": True,
        "NUM_HM_CONV": 2,
        "SEPARATE_HEAD_CFG": {
            "HEAD_ORDER": list(columns),
            "HEAD_DICT": {name: {"out_channels": n, "num_conv": 2} for name, n in columns.items()},
        },
        "TARGET_ASSIGNER_CONFIG": {
            "FEATURE_MAP_STRIDE": 2,
            "NUM_MAX_OBJS": 20,
            "GAUSSIAN_OVERLAP": 0.1,
            "MIN_RADIUS": 2,
        },
        "LOSS_CONFIG": {
            "LOSS_WEIGHTS": {
                "cls_weight": 1.0,
                "loc_weight": 0.25,
                "code_weights": [1.0] * sum(columns.values()),
            }
        },
        "POST_PROCESSING": {
            "SCORE_THRESH": 0.1,
            "POST_CENTER_LIMIT_RANGE": [-1, -9, -4, 17, 9, 4],
            "MAX_OBJ_PER_SAMPLE": 50,
            "NMS_CONFIG": {
                "NMS_TYPE": "nms_gpu",
                "NMS_THRESH": 0.2,
                "NMS_PRE_MAXSIZE": 1000,
                "NMS_POST_MAXSIZE": 20,
            },
        },
    }
    config["POST_PROCESSING"] = {"RECALL_THRESH_LIST": [0.3, 0.5]}
    return config


def center_dataset() -> Any:
    """All that build_network reads of a data set."""
    return SimpleNamespace(
        class_names=CLASS_NAMES,
        point_feature_encoder=SimpleNamespace(num_point_features=4),
        point_cloud_range=np.array(RANGE, dtype=np.float32),
        grid_size=np.array([32, 32, 1]),
        voxel_size=[0.5, 0.5, 4.0],
        depth_downsample_factor=None,
    )


def center_model(config: dict[str, Any] | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    return build_network(config or center_config(), len(CLASS_NAMES), center_dataset())


def center_batch(pillars: tuple[int, ...] = (60, 50), boxes: bool = True) -> dict[str, Any]:
    """The batch of ``model_cases``, with its points beside its pillars, and a third box in every sample."""
    given = batch(pillars, boxes)
    filled = torch.arange(given["voxels"].shape[1]) < given["voxel_num_points"].unsqueeze(1)
    sample = given["voxel_coords"][:, :1].unsqueeze(1).expand(-1, filled.shape[1], 1)
    given["points"] = torch.cat([sample.float(), given["voxels"]], dim=2)[filled]
    cyclist, car = [12.0, 5.0, -1.0, 1.8, 0.6, 1.7, 1.0, 3.0], [12.0, 5.0, -1.0, 4.2, 1.7, 1.6, 1.0, 1.0]
    if boxes:
        # an odd number of boxes for each head of two samples: signs in the gradient of L1 cannot cancel
        more = torch.tensor([cyclist, *[car] * len(pillars)][: len(pillars)]).unsqueeze(1)
        given["gt_boxes"] = torch.cat([given["gt_boxes"], more], dim=1)
    return given
