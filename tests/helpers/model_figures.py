"""What a model of cfgs/ computes, as a few numbers: stages, detections, loss, gradients, the first steps."""

from __future__ import annotations

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
STEPS = 3
STAGES = ("voxel_features", "pillar_features", "spatial_features", "spatial_features_2d")
SAMPLES = 16


def model_of(name: str) -> CutModel:
    """The model of a YAML with weights that depend only on their names and shapes."""
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
    """Mean, standard deviation and samples at flat indices that depend only on the size."""
    flat = value.detach().double().reshape(-1)
    if not len(flat):
        return []
    picked = flat[[i * 2654435761 % len(flat) for i in range(SAMPLES)]]
    return [flat.mean().item(), flat.std(unbiased=False).item(), *picked.tolist()]


def stages_of(batch: dict[str, Any]) -> dict[str, Any]:
    """Summaries of the modules' outputs in ``batch``, voxel rows sorted by coordinates."""
    order = np.lexsort(batch["voxel_coords"].numpy().T[::-1])
    found = {"voxels": len(order)}
    for key in STAGES:
        if key in batch:
            rows = batch[key][torch.from_numpy(order)] if batch[key].ndim == 2 else batch[key]
            found[key] = summary(rows)
    return found


def figures_of(name: str) -> dict[str, Any]:
    """Stages and detections in eval mode; stages, loss parts, gradients and the first steps in train mode."""
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
    """Gradient norm per module, two levels deep."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        part = ".".join(name.split(".")[:2])
        squares[part] = squares.get(part, 0.0) + parameter.grad.double().square().sum().item()
    return {part: total**0.5 for part, total in squares.items()}
