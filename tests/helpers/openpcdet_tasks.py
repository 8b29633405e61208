"""Task heads of a user, their labels, and the stand-in's data for them."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from easydict import EasyDict
from standin_runs import STANDIN, Standin, seed
from torch import nn

from pcdet_freeze import openpcdet

CFG = "tools/cfgs/scan_models/pointpillar.yaml"
FLIP, TURN, PASTE = ({"NAME": name} for name in ("random_world_flip", "random_world_rotation", "gt_sampling"))
LIST = "vfe,backbone_2d,dense_head"


class Head(nn.Module):
    """The smallest head."""

    def __init__(self, model_cfg: Any, input_channels: int, **context: Any) -> None:
        super().__init__()
        self.context, self.layer = context, nn.Linear(input_channels, 1)

    def forward(self, batch_dict: Any) -> Any:
        self.out = self.layer(batch_dict["spatial_features_2d"].mean(dim=(2, 3)))
        return batch_dict

    def get_loss(self) -> Any:
        return self.out.square().mean(), {"loss_small": self.out.detach().mean()}


class OtherHead(Head):
    pass


class HeadWithMetric(Head):
    @staticmethod
    def metric(counts: Any) -> dict[str, float]:
        return {"sum": float(counts)}


def number_of_point(frame: Any, dataset: Any) -> np.ndarray:
    """Label k of point k, whose height is k / 64."""
    return np.arange(len(frame["points"]))


def batches(found: Any) -> list[dict[str, Any]]:
    seed()
    return [batch for _ in range(3) for batch in found]


def build(standin: Standin, names: Any = None, **sections: Any) -> Any:
    openpcdet.install()
    cfg = EasyDict(yaml.safe_load((STANDIN / CFG).read_text())).MODEL
    del cfg["SEGMENT_HEAD"]
    cfg.update(EasyDict(sections))
    if names is not None:
        cfg.update(NOT_TRAIN_IN_MULTI_TASK=names, FREEZE=EasyDict(ALLOW_RANDOM=True))
    seed()
    dataset = SimpleNamespace(class_names=["Car"], logger=logging.getLogger("standin"), grid_size=[8, 8, 1])
    return standin.module("pcdet.models").build_network(cfg, 1, dataset)


def scan_batch() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    points = torch.randn(24, 4, generator=draw)
    points[:, 0] = torch.arange(24) // 12
    return {"points": points, "gt_boxes": torch.randn(2, 3, 4, generator=draw), "batch_size": 2}
