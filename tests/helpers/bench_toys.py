"""A model whose figures can be worked out on paper, and the benchmark's own config made small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from easydict import EasyDict
from engine_toy import OPTIM
from torch import nn

from pcdet_freeze.bench import Contender, RandomScenes, build_contenders, make_batch
from pcdet_freeze.config import cfg_from_list, cfg_from_yaml_file
from pcdet_freeze.models import build_network

ROWS, IN, MIDDLE, OUT = 7, 3, 5, 2
CFG = Path(__file__).resolve().parents[2] / "cfgs" / "bench" / "pointpillar.yaml"
SMALL = [
    "DATA_CONFIG.POINT_CLOUD_RANGE", "[0, -12.8, -3, 25.6, 12.8, 1]",
    "DATA_CONFIG.RANDOM_SCENES.POINTS", "500",
    "DATA_CONFIG.DATA_PROCESSOR.2.VOXEL_SIZE", "[0.8, 0.8, 4]", "DATA_CONFIG.RANDOM_SCENES.BOXES", "3",
    "MODEL.BACKBONE_2D.LAYER_NUMS", "[1, 1, 1]", "MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 8]",
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[8, 8, 8]",
]  # fmt: skip


class TwoLayers(nn.Module):
    """(7, 3) -> Linear -> (7, 5) -> BatchNorm -> Linear -> (7, 2); the loss is the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.vfe = nn.Sequential(nn.Linear(IN, MIDDLE), nn.BatchNorm1d(MIDDLE))
        self.head = nn.Linear(MIDDLE, OUT)

    def forward(self, batch: dict[str, Any]) -> Any:
        return {"loss": self.head(self.vfe(batch["x"])).sum()}, {}, {}


def toy_contenders(*names: str) -> dict[str, Contender]:
    """Variants of TwoLayers with vfe frozen, by name."""
    torch.manual_seed(0)
    cfg = EasyDict(MODEL={"NOT_TRAIN_IN_MULTI_TASK": ["vfe"]}, OPTIMIZATION=OPTIM)
    made = build_contenders(TwoLayers(), cfg, {"x": torch.randn(ROWS, IN)}, names)
    return {contender.name: contender for contender in made}


def small_cfg() -> Any:
    cfg = cfg_from_yaml_file(CFG)
    cfg_from_list(SMALL, cfg)
    return cfg


def subject(cfg: Any, batch_size: int = 2) -> tuple[nn.Module, dict[str, Any]]:
    """Model and batch of a config."""
    torch.manual_seed(0)
    scenes = RandomScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), scenes)
    return model, make_batch(scenes, batch_size, torch.device("cpu"))
