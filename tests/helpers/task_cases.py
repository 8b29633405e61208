"""A detector with all three tasks that is small enough to train in a test, and batches for it."""

from __future__ import annotations

from typing import Any

import torch
from model_cases import CLASS_NAMES, batch, dataset, model_config

from pcdet_freeze.models import build_network

SEMANTIC = ("road", "car", "other")
LANES = 3
STAGE_2 = ["vfe", "backbone_2d.blocks", "backbone_2d.deblocks", "dense_head"]
STAGE_3 = [*STAGE_2, "backbone_2d.segblocks", "backbone_2d.seg_out_conv", "segment_head"]


def task_config(*tasks: str, detect: bool = True) -> dict[str, Any]:
    """``cfg.MODEL`` with detection and ``tasks`` ("segment", "lane"); a test may change it."""
    config = model_config()
    config["BACKBONE_2D"] |= {
        "NAME": "BaseBEVBackboneMultiTask",
        "OTHER_TASKS": list(tasks),
        "SEGBLOCKS": {"LAYER_NUMS": [0, 1], "NUM_FILTERS": [8, 8], "NUM_OUT": 8},
        "LANEBLOCKS": {"LAYER_NUMS": [0, 1], "LAYER_STRIDES": [1, 2], "NUM_FILTERS": [8, 8]},
        "MIXSEGNET": {"PATCH_SIZE": 4, "WIDTH": 16, "DEPTH": 1, "NUM_OUT": 8},
    }
    if "segment" in tasks:
        config["SEGMENT_HEAD"] = {"NAME": "SegmentHead", "POINT_FILTERS": [8]}
    if "lane" in tasks:
        config["LANE_HEAD"] = {"NAME": "LaneHead", "NUM_LANES": LANES, "NUM_FILTERS": 8}
    if not detect:
        del config["DENSE_HEAD"], config["POST_PROCESSING"]
    return config


def task_model(*tasks: str, config: dict[str, Any] | None = None, cells: int = 32, seed: int = 0) -> Any:
    data = dataset(cells)
    data.semantic_class_names = SEMANTIC
    torch.manual_seed(seed)
    return build_network(config or task_config(*tasks), len(CLASS_NAMES), data)


def task_batch(pillars: tuple[int, ...] = (60, 50), seed: int = 0, lines: int = 2) -> dict[str, Any]:
    """``batch`` with its points, their classes by height, and ``lines`` lanes along x in every sample."""
    made = batch(pillars, seed=seed)
    slots = torch.arange(made["voxels"].shape[1])
    filled = slots < made["voxel_num_points"].unsqueeze(1)
    samples = made["voxel_coords"][:, :1].expand_as(filled)[filled]
    points = torch.cat([samples.unsqueeze(1).float(), made["voxels"][filled]], dim=1)
    lane_map = torch.full((len(pillars), 32, 32), 255, dtype=torch.uint8)
    for line in range(lines):
        lane_map[:, 8 + 8 * line] = line
    labels = (points[:, 3] > 0).long() + (points[:, 4] > 0.2).long()
    return made | {"points": points, "point_labels": labels, "lane_map": lane_map}


def unlabelled(batch_dict: dict[str, Any], label: str, *frames: int) -> dict[str, Any]:
    """The batch as the loader gives it where these frames lack ``label``: filled up, and flagged."""
    flags = torch.ones(int(batch_dict["batch_size"]), dtype=torch.bool)
    flags[list(frames)] = False
    value = batch_dict[label].clone()
    away = ~flags[batch_dict["points"][:, 0].long()] if label == "point_labels" else ~flags
    value[away] = 0 if label == "gt_boxes" else 255
    return batch_dict | {label: value, f"has_{label}": flags}


def bare(batch_dict: dict[str, Any], *labels: str) -> dict[str, Any]:
    """The batch as the loader gives it where no frame has any of ``labels``."""
    none = torch.zeros(int(batch_dict["batch_size"]), dtype=torch.bool)
    kept = {key: value for key, value in batch_dict.items() if key not in labels}
    return kept | {f"has_{label}": none for label in labels}


def without_detection(model: Any) -> list[torch.nn.Parameter]:
    """Parameters of a model whose tasks do not read the branch of the trunk for detection."""
    names = ("backbone_2d.blocks", "backbone_2d.deblocks")
    return [p for name, p in model.named_parameters() if not name.startswith(names)]


def grads(model: Any, batch_dict: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Gradient of every trainable parameter that has one, after one training step."""
    model.zero_grad()
    model.train()(dict(batch_dict))[0]["loss"].backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
