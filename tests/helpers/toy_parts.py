"""Tiny parts of a detector that go through the real registries: a trunk, a dense head, heads behind it."""

from __future__ import annotations

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from pcdet_freeze.models import BACKBONES_2D, DENSE_HEADS, MAP_TO_BEVS, TASK_HEADS, VFES, build_network

WIDTH = 6


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH), nn.ReLU())


class Part(nn.Module):
    """Counts its forwards, and remembers the mode and the keys of the last one."""

    def __init__(self, settings: Any, context: Any) -> None:
        super().__init__()
        self.calls: list[tuple[bool, bool]] = []

    def note(self) -> None:
        """(train mode, graph wanted) of this forward."""
        self.calls.append((self.training, torch.is_grad_enabled()))


@VFES.register
class ToyVFE(Part):
    reads = ("x",)
    writes = ("low",)

    def __init__(self, settings: Any, context: Any) -> None:
        super().__init__(settings, context)
        self.net = layers()

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        self.note()
        batch_dict["low"] = self.net(batch_dict["x"])
        return batch_dict


@MAP_TO_BEVS.register
class ToyReshape(Part):
    """Has nothing to train."""

    reads = ("low",)
    writes = ("map",)

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        self.note()
        batch_dict["map"] = batch_dict["low"] * 2
        return batch_dict


@BACKBONES_2D.register
class ToyBackbone(Part):
    """One branch a task; it says which children make which key."""

    reads = ("low",)
    writes = ("features", "lane_features")

    def __init__(self, settings: Any, context: Any) -> None:
        super().__init__(settings, context)
        self.blocks, self.deblocks, self.lane_deblocks = layers(), layers(), layers()
        if settings.get("MADE_BY", True):
            self.made_by = {"features": ("blocks", "deblocks"), "lane_features": ("blocks", "lane_deblocks")}

    def forward(self, batch_dict: dict[str, Any], skip: Collection[str] = ()) -> dict[str, Any]:
        self.note()
        x = self.blocks(batch_dict["low"])
        for key, branch in (("features", self.deblocks), ("lane_features", self.lane_deblocks)):
            if key not in skip:
                batch_dict[key] = branch(x)
        return batch_dict


class Head(Part):
    """Regresses one label from one feature; in train mode it needs the label in its forward."""

    label = ""
    source = ""
    output = ""

    def __init__(self, settings: Any, context: Any) -> None:
        super().__init__(settings, context)
        self.net = nn.Sequential(nn.Dropout(0.5), nn.Linear(WIDTH, WIDTH))
        self.out = nn.Linear(WIDTH, 1)
        self.kept: dict[str, torch.Tensor] = {}

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        self.note()
        value = self.out(self.net(batch_dict[self.source]))
        self.kept = {"value": value}
        if self.training:
            self.kept["target"] = batch_dict[self.label]
        batch_dict[self.output] = value
        return batch_dict

    def get_loss(self, tb_dict: dict[str, float] | None = None) -> tuple[torch.Tensor, dict[str, float]]:
        loss = (self.kept["value"] - self.kept["target"]).square().mean()
        return loss, {} if tb_dict is None else tb_dict

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "kept": {}}


@DENSE_HEADS.register
class ToyDenseHead(Head):
    """Also overwrites its label and adds a key that it does not declare."""

    reads, writes, reads_train = ("features",), ("proposals",), ("label",)
    source, output, label = "features", "proposals", "label"

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        super().forward(batch_dict)
        if not self.training:
            batch_dict["label"], batch_dict["scratch"] = torch.zeros(1), torch.ones(1)
        return batch_dict


@TASK_HEADS.register
class ToyRoiHead(Head):
    """Refines the dense head's proposals."""

    reads, writes, reads_train = ("proposals", "features"), ("refined",), ("label",)
    source, output, label = "features", "refined", "label"

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        super().forward(batch_dict)
        self.kept["value"] = self.kept["value"] + batch_dict["proposals"]
        return batch_dict


@TASK_HEADS.register
class ToyLaneHead(Head):
    reads, writes, reads_train = ("lane_features",), ("lanes",), ("lane_label",)
    source, output, label = "lane_features", "lanes", "lane_label"


@TASK_HEADS.register
class ToyMuteHead(Head):
    """Declares nothing."""

    source, output, label = "features", "mute", "label"

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        super().forward(batch_dict)
        batch_dict["label"] = batch_dict["x"][:, :1] * 0
        return batch_dict


def toy(*sections: str, detector: str = "PointPillar", seed: int = 0, **backbone: Any) -> Any:
    """A detector of these sections, for example ``toy("DENSE_HEAD", "ROI_HEAD")``."""
    names = {"DENSE_HEAD": "ToyDenseHead", "ROI_HEAD": "ToyRoiHead", "LANE_HEAD": "ToyLaneHead"}
    names |= {"MUTE_HEAD": "ToyMuteHead", "MAP_TO_BEV": "ToyReshape"}
    cfg: dict[str, Any] = {"NAME": detector, "VFE": {"NAME": "ToyVFE"}}
    cfg["BACKBONE_2D"] = {"NAME": "ToyBackbone", **backbone}
    cfg |= {section: {"NAME": names[section]} for section in sections}
    torch.manual_seed(seed)
    return build_network(cfg, 1, geometry())


def geometry() -> Any:
    return SimpleNamespace(
        class_names=["Car"],
        point_feature_encoder=SimpleNamespace(num_point_features=4),
        point_cloud_range=np.zeros(6, np.float32),
        grid_size=None,
        voxel_size=None,
    )


def toy_batch(*labels: str, seed: int = 0) -> dict[str, Any]:
    """Eight rows; only these labels."""
    draw = torch.Generator().manual_seed(seed)
    batch: dict[str, Any] = {"x": torch.randn(8, WIDTH, generator=draw), "batch_size": 8}
    return batch | {label: torch.randn(8, 1, generator=draw) for label in labels}
