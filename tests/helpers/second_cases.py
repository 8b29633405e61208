"""SECOND nets that are small enough to train in a test, and batches for them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from center_cases import center_config
from model_cases import CLASS_NAMES, RANGE, batch, model_config

from pcdet_freeze.models import build_network

CELLS, LAYERS = 32, 40
BACKBONES = ["VoxelBackBone8x", "VoxelResBackBone8x"]


def second_config(backbone: str = "VoxelBackBone8x", vfe: str = "MeanVFE") -> dict[str, Any]:
    """A fresh ``cfg.MODEL`` with anchors; a test may change it."""
    config = model_config()
    config["NAME"] = "SECONDNet"
    for anchor in config["DENSE_HEAD"]["ANCHOR_GENERATOR_CONFIG"]:
        anchor["feature_map_stride"] = 8
    return _sparse(config, backbone, vfe)


def sparse_center_config(backbone: str = "VoxelResBackBone8x", vfe: str = "MeanVFE") -> dict[str, Any]:
    """The same with a CenterHead."""
    config = center_config()
    config["DENSE_HEAD"]["TARGET_ASSIGNER_CONFIG"]["FEATURE_MAP_STRIDE"] = 8
    return _sparse(config, backbone, vfe)


def _sparse(config: dict[str, Any], backbone: str, vfe: str) -> dict[str, Any]:
    config["VFE"] = {"NAME": vfe}
    config["BACKBONE_3D"] = {"NAME": backbone}
    config["MAP_TO_BEV"] = {"NAME": "HeightCompression", "NUM_BEV_FEATURES": 256}
    config["BACKBONE_2D"].update(LAYER_STRIDES=[1, 2])
    return config


def sparse_dataset(class_names: list[str]) -> Any:
    """All that build_network reads of a data set."""
    return SimpleNamespace(
        class_names=class_names,
        point_feature_encoder=SimpleNamespace(num_point_features=4),
        point_cloud_range=np.array(RANGE, dtype=np.float32),
        grid_size=np.array([CELLS, CELLS, LAYERS]),
        voxel_size=[16.0 / CELLS, 16.0 / CELLS, 4.0 / LAYERS],
        depth_downsample_factor=None,
    )


def second_model(config: dict[str, Any] | None = None, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    names = CLASS_NAMES
    config = config or second_config()
    if config["NAME"] == "CenterPoint":
        names = ["Car", "Pedestrian", "Cyclist"]
    return build_network(config, len(names), sparse_dataset(names))


def second_batch(voxels: tuple[int, ...] = (400, 300), boxes: bool = True, seed: int = 0) -> dict[str, Any]:
    """The batch of ``model_cases``, its pillars lifted to layers, with its points beside them."""
    given, random = batch(voxels, boxes, seed), np.random.RandomState(seed)
    layer = torch.from_numpy(random.randint(0, LAYERS, len(given["voxel_coords"])).astype(np.int32))
    given["voxel_coords"][:, 1] = layer
    size = 4.0 / LAYERS
    filled = torch.arange(given["voxels"].shape[1]) < given["voxel_num_points"].unsqueeze(1)
    inside = torch.from_numpy(random.uniform(0.1, 0.9, filled.shape).astype(np.float32))
    given["voxels"][..., 2] = (RANGE[2] + size * (layer.unsqueeze(1) + inside)) * filled
    sample = given["voxel_coords"][:, :1].unsqueeze(1).expand(-1, filled.shape[1], 1)
    given["points"] = torch.cat([sample.float(), given["voxels"]], dim=2)[filled]
    return given
