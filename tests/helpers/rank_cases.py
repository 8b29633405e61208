"""Batches of four frames, split over ranks or micro-batches, and the gradients that they give."""

from __future__ import annotations

from typing import Any

import torch
from center_cases import center_batch, center_config, center_model
from task_cases import task_batch, task_config, task_model, unlabelled
from torch import nn

LABELS = ("gt_boxes", "point_labels", "lane_map")
BY_POINT = ("points", "point_labels")
BY_PILLAR = ("voxels", "voxel_coords", "voxel_num_points")
SPLITS = {"two and two": ((0, 1), (2, 3)), "three and one": ((0, 1, 2), (3,))}
Tensors = dict[str, torch.Tensor]


def frames_of(batch: dict[str, Any], frames: tuple[int, ...]) -> dict[str, Any]:
    """The batch of ``frames``, as the loader gives it."""
    made: dict[str, Any] = {"batch_size": len(frames)}
    rows = {"points": batch["points"][:, 0].long(), "voxels": batch["voxel_coords"][:, 0].long()}
    for key, value in batch.items():
        kind = "points" if key in BY_POINT else "voxels" if key in BY_PILLAR else ""
        if kind:
            made[key] = torch.cat([value[rows[kind] == frame] for frame in frames])
        elif key != "batch_size":
            made[key] = value[list(frames)]
    for key in ("points", "voxel_coords"):
        sizes = [int((rows["points" if key == "points" else "voxels"] == frame).sum()) for frame in frames]
        made[key][:, 0] = torch.arange(len(frames)).repeat_interleave(torch.tensor(sizes))
    return made


def four_frames(missing: str = "", frames: tuple[int, ...] = (2, 3)) -> dict[str, Any]:
    """Frames with unequal numbers of points, boxes and lanes; ``frames`` lack the label ``missing``."""
    batch = task_batch((60, 20, 45, 35), seed=1)
    batch["gt_boxes"][0, 1] = 0
    batch["gt_boxes"][3] = 0
    batch["point_labels"][::7] = 255
    batch["lane_map"][0, 16:] = 255
    return unlabelled(batch, missing, *frames) if missing else batch


def three_tasks(seed: int = 0, **keys: Any) -> Any:
    """A detector with three tasks whose losses are all normalised globally."""
    config = task_config("segment", "lane") | {"LOSS_NORMALIZATION": "global", "LEARN_LOSS_WEIGHTS": True}
    config["SEGMENT_HEAD"] |= {"CELL_LABELS": True, "MAX_POINTS": 60}
    config["SEGMENT_HEAD"]["LOSS_CONFIG"] = {"CLASS_WEIGHTS": [1.0, 2.0, 0.5]}
    return task_model(config=config | keys, seed=seed)


def center_point(seed: int = 0) -> Any:
    return center_model(center_config() | {"LOSS_NORMALIZATION": "global"}, seed)


def center_frames() -> dict[str, Any]:
    batch = center_batch((60, 20, 45, 35))
    batch["gt_boxes"][0, 1:] = 0
    batch["gt_boxes"][3] = 0
    return batch


def held(model: nn.Module) -> nn.Module:
    """Train mode with every norm layer in eval mode: no frame changes the features of another."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    return model


def gradients(model: nn.Module, parameters: Any) -> Tensors:
    return {name: p.grad.clone() for name, p in parameters.named_parameters() if p.grad is not None}


ZERO = ("token_mlp.2.bias",)
"""biases that the following norm subtracts: their gradient is zero but for rounding"""


def worst(found: Tensors, wanted: Tensors) -> float:
    """Largest relative error (L2) of the gradient of a parameter."""
    assert found.keys() == wanted.keys()
    assert all(found[name].norm() < 1e-8 for name in wanted if name.endswith(ZERO))
    names = [name for name in wanted if not name.endswith(ZERO)]
    errors = [(found[k] - wanted[k]).norm() / wanted[k].norm().clamp(min=1e-12) for k in names]
    return float(torch.stack(errors).max())


def flat(tensors: Tensors) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors.values()])


def whole_error(found: Tensors, wanted: Tensors) -> float:
    """Relative error (L2) of all tensors together."""
    return float((flat(found) - flat(wanted)).norm() / flat(wanted).norm())
