"""What ``bench`` measures: a model with random weights, and a batch of random scenes or of a data set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from pcdet_freeze.bench.random_scenes import RandomScenes, make_batch, sizes_of
from pcdet_freeze.bench.variants import settle_statistics
from pcdet_freeze.datasets.loader import register_all
from pcdet_freeze.datasets.registry import DATASETS
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.models import build_network
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_seed


@dataclass
class Subject:
    """The config, its model and its batch."""

    cfg: Any
    model: nn.Module
    batch: dict[str, Any]


def build_subject(cfg: Any, device_name: str, frames: int) -> Subject:
    """Model and batch of ``cfg``, announced by a line."""
    device = distributed.pick_device(device_name)
    set_seed(0)
    scenes = RandomScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES, sizes=sizes_of(cfg.MODEL))
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), scenes).to(device)
    batch = make_batch(scenes, frames, device)
    print(_headline(cfg, scenes, batch, device), flush=True)
    return Subject(cfg, model, batch)


def _headline(cfg: Any, scenes: RandomScenes, batch: dict[str, Any], device: torch.device) -> str:
    grid = "x".join(map(str, scenes.grid_size[:2])) if scenes.grid_size is not None else "no"
    voxels = f", {len(batch['voxels'])} voxels" if "voxels" in batch else ""
    return (
        f"{cfg.MODEL.NAME}: grid {grid}, batch {batch['batch_size']}, {len(batch['points'])} points{voxels}; "
        f"{device.type}, {torch.get_num_threads()} thread(s)"
    )


def subject_of_frames(cfg: Any, device_name: str, frames: int | None) -> Subject:
    """The model, and the first test frames (None: three) of the config's data set, not augmented."""
    register_all()
    set_seed(0)
    kind = (
        RandomScenes if cfg.DATA_CONFIG.DATASET == "RandomScenes" else DATASETS.get(cfg.DATA_CONFIG.DATASET)
    )
    dataset: DatasetTemplate = kind(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    device = distributed.pick_device(device_name)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset).to(device)
    batch = make_batch(dataset, min(frames or 3, len(dataset)), device)
    settle_statistics(model, batch)
    return Subject(cfg, model, batch)
