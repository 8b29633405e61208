"""Figures of our own: what the models of cfgs/ compute, small enough to travel with the project.

They were written by code whose every stage the tests of tests/parity had found equal to OpenPCDet's, and
are compared where those figures are absent. Write them anew after a change that is meant to alter numbers:

    PYTHONPATH=.:tests/helpers python tests/figures/make_figures.py
"""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cut_models import CutModel

from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import clip_norm_of

ROOT = Path(__file__).resolve().parents[2]
FILE = Path(__file__).with_name("models.json")
NAMES = [
    "kitti_models/pointpillar",
    "kitti_models/second",
    "kitti_models/second_multihead",
    "waymo_models/centerpoint_pillar_1x",
    "waymo_models/centerpoint_dyn_pillar_1x",
    "waymo_models/centerpoint",
    "nuscenes_models/cbgs_pp_multihead",
    "nuscenes_models/cbgs_second_multihead",
]
STEPS = 3
STAGES = ("voxel_features", "pillar_features", "spatial_features", "spatial_features_2d")
SAMPLES = 16


def model_of(name: str) -> CutModel:
    """The model of a YAML with weights that depend on nothing but their names and shapes."""
    cut = CutModel(ROOT, name)
    state = cut.model.state_dict()
    for key, value in state.items():
        random = np.random.RandomState(zlib.crc32(key.encode()))
        if key.endswith("running_var") or (key.endswith("weight") and value.ndim == 1):
            value.copy_(torch.from_numpy(random.uniform(0.9, 1.1, tuple(value.shape))))
        elif value.is_floating_point():
            fan_in = max(value[0].numel(), 1) if value.ndim > 1 else 400
            value.copy_(torch.from_numpy(random.standard_normal(tuple(value.shape)) / fan_in**0.5))
    return cut


def summary(value: torch.Tensor) -> list[float]:
    """Mean, standard deviation, and some values at places that depend on the size alone."""
    flat = value.detach().double().reshape(-1)
    if not len(flat):
        return []
    picked = flat[[i * 2654435761 % len(flat) for i in range(SAMPLES)]]
    return [flat.mean().item(), flat.std(unbiased=False).item(), *picked.tolist()]


def stages_of(batch: dict[str, Any]) -> dict[str, Any]:
    """Summaries of what the modules wrote; rows of voxels in the order of their places."""
    order = np.lexsort(batch["voxel_coords"].numpy().T[::-1])
    found = {"voxels": len(order)}
    for key in STAGES:
        if key in batch:
            rows = batch[key][torch.from_numpy(order)] if batch[key].ndim == 2 else batch[key]
            found[key] = summary(rows)
    return found


def figures_of(name: str) -> dict[str, Any]:
    """Eval stages and detections, training loss, gradients and the first steps of a model."""
    cut = model_of(name)
    keys = ",".join(f"{key}{list(value.shape)}" for key, value in cut.model.state_dict().items())
    found: dict[str, Any] = {"keys": zlib.crc32(keys.encode())}
    batch = cut.batch()
    with torch.no_grad():
        predicted, _ = cut.model.eval()(batch)
    found["eval"] = stages_of(batch)
    found["best_scores"] = [
        sample["pred_scores"].sort(descending=True).values[:4].tolist() for sample in predicted
    ]
    found["losses"], found["norms"] = [], []
    optim = cut.cfg.OPTIMIZATION
    optimizer = build_optimizer(cut.model.train(), optim)
    schedule = build_scheduler(optimizer, STEPS, STEPS, optim)
    for step in range(STEPS):
        schedule.apply(optimizer, step)
        optimizer.zero_grad()
        batch = cut.batch()
        result, parts, _ = cut.model(batch)
        result["loss"].backward()
        if step == 0:
            found["train"], found["parts"] = stages_of(batch), parts
            found["gradients"] = gradients_of(cut.model)
        norm = torch.nn.utils.clip_grad_norm_(cut.model.parameters(), clip_norm_of(optim) or torch.inf)
        optimizer.step()
        found["losses"].append(result["loss"].item())
        found["norms"].append(norm.item())
    return found


def gradients_of(model: Any) -> dict[str, float]:
    """Norm of the gradient of each child of each module."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[:2])
        squares[part] = squares.get(part, 0.0) + parameter.grad.double().square().sum().item()
    return {part: total**0.5 for part, total in squares.items()}


def rounded(value: Any) -> Any:
    """The same with seven digits a number."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return float(f"{value:.7g}") if isinstance(value, float) else value


if __name__ == "__main__":
    figures = {name: rounded(figures_of(name)) for name in NAMES}
    lines = [f"{json.dumps(name)}: {json.dumps(found)}" for name, found in figures.items()]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
