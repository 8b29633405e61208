"""A pillar detector for the stand-in, with the attributes, keys and layers of OpenPCDet's parts."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from standin_runs import Standin
from torch import Tensor, nn

SLOTS, WIDTH, HEIGHT = 4, 8, 8
Batch = dict[str, Any]


def filled_norm(norm: Any) -> Any:
    """``norm`` with statistics and weights that are not 0 and 1."""
    nn.init.normal_(norm.running_mean, std=0.2)
    nn.init.uniform_(norm.running_var, 0.5, 2)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias, std=0.2)
    return norm


class PFNLayer(nn.Module):
    def __init__(self, width_in: int, width: int, last: bool) -> None:
        super().__init__()
        self.last_vfe, self.use_norm = last, True
        width = width if last else width // 2
        self.linear, self.norm = nn.Linear(width_in, width, bias=False), filled_norm(nn.BatchNorm1d(width))

    def forward(self, points: Tensor) -> Tensor:
        rows = self.norm(self.linear(points).transpose(1, 2)).transpose(1, 2).relu()
        highest = rows.amax(dim=1, keepdim=True)
        return highest if self.last_vfe else torch.cat([rows, highest.expand_as(rows)], dim=2)


class PillarVFE(nn.Module):
    """Points relative to the mean and to the centre of their pillar; padding is rows of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.with_distance, self.use_absolute_xyz = False, True
        self.voxel_x, self.voxel_y, self.voxel_z = 0.2, 0.2, 4.0
        self.x_offset, self.y_offset, self.z_offset = 0.1, -0.5, -1.0
        self.pfn_layers = nn.ModuleList([PFNLayer(10, 8, last=False), PFNLayer(8, 8, last=True)])

    def forward(self, batch_dict: Batch, **kwargs: Any) -> Batch:
        voxels, counts, coords = (batch_dict[k] for k in ("voxels", "voxel_num_points", "voxel_coords"))
        size = voxels.new_tensor([self.voxel_x, self.voxel_y, self.voxel_z])
        offset = voxels.new_tensor([self.x_offset, self.y_offset, self.z_offset])
        xyz = voxels[..., :3]
        mean = xyz.sum(dim=1, keepdim=True) / counts.view(-1, 1, 1)
        centre = (coords[:, [3, 2, 1]] * size + offset).unsqueeze(1)
        features = torch.cat([voxels, xyz - mean, xyz - centre], dim=2)
        features = features * (torch.arange(voxels.shape[1]) < counts.unsqueeze(1)).unsqueeze(2)
        for layer in self.pfn_layers:
            features = layer(features)
        batch_dict["pillar_features"] = features.squeeze()
        return batch_dict


class ScaledVFE(PillarVFE):
    """A fork: the same attributes, another result."""

    def forward(self, batch_dict: Batch, **kwargs: Any) -> Batch:
        batch_dict = super().forward(batch_dict)
        batch_dict["pillar_features"] = batch_dict["pillar_features"] * 2
        return batch_dict


class FarVFE(PillarVFE):
    """A fork: another result for cells that the batch of these tests does not hold."""

    def forward(self, batch_dict: Batch, **kwargs: Any) -> Batch:
        batch_dict = super().forward(batch_dict)
        far = (batch_dict["voxel_coords"][:, 3] > WIDTH).unsqueeze(1)
        batch_dict["pillar_features"] = batch_dict["pillar_features"].masked_fill(far, 0.0)
        return batch_dict


class GreedyVFE(PillarVFE):
    """A fork: it reads one more key."""

    def forward(self, batch_dict: Batch, **kwargs: Any) -> Batch:
        batch_dict["voxels"] = batch_dict["voxels"] + 0.0 * batch_dict["gt_boxes"].sum()
        return super().forward(batch_dict)


class Scatter(nn.Module):
    def forward(self, batch_dict: Batch) -> Batch:
        features, coords = batch_dict["pillar_features"], batch_dict["voxel_coords"].long()
        maps = features.new_zeros(batch_dict["batch_size"], features.shape[1], HEIGHT, WIDTH)
        maps[coords[:, 0], :, coords[:, 2], coords[:, 3]] = features
        batch_dict["spatial_features"] = maps
        return batch_dict


def down(width_in: int, width: int) -> nn.Sequential:
    several = [nn.ZeroPad2d(1), nn.Conv2d(width_in, width, 3, stride=2, bias=False)]
    return nn.Sequential(*several, filled_norm(nn.BatchNorm2d(width)), nn.ReLU())


def up(width_in: int, factor: int) -> nn.Sequential:
    layer = nn.ConvTranspose2d(width_in, 8, factor, stride=factor, bias=False)
    return nn.Sequential(layer, filled_norm(nn.BatchNorm2d(8)), nn.ReLU())


class Backbone2D(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([down(8, 8), down(8, 8)])
        self.deblocks = nn.ModuleList([up(8, 1), up(8, 2)])

    def forward(self, batch_dict: Batch) -> Batch:
        x, ups = batch_dict["spatial_features"], []
        for block, deblock in zip(self.blocks, self.deblocks, strict=True):
            x = block(x)
            ups.append(deblock(x))
        batch_dict["spatial_features_2d"] = torch.cat(ups, dim=1)
        return batch_dict


class RoughBackbone2D(Backbone2D):
    """A backbone whose output changes wholly with the last bit of its input."""

    factor = 1e6

    def forward(self, batch_dict: Batch) -> Batch:
        batch_dict = super().forward(batch_dict)
        batch_dict["spatial_features_2d"] = torch.sin(batch_dict["spatial_features_2d"] * self.factor)
        return batch_dict


class CoarseBackbone2D(RoughBackbone2D):
    """A backbone whose output has a relative error of about 0.06 with bfloat16."""

    factor = 200.0


class ViewingHead(nn.Module):
    """A head that needs a contiguous map."""

    def __init__(self, predict_boxes_when_training: bool = False) -> None:
        super().__init__()
        self.conv_cls, self.conv_box = nn.Conv2d(16, 2, 1), nn.Conv2d(16, 4, 1)
        self.forward_ret_dict: dict[str, Tensor] = {}

    def read(self, batch_dict: Batch) -> Tensor:
        found: Tensor = batch_dict["spatial_features_2d"]
        return found.view(found.shape)

    def forward(self, batch_dict: Batch) -> Batch:
        maps = self.read(batch_dict)
        self.forward_ret_dict = {"cls": self.conv_cls(maps), "box": self.conv_box(maps)}
        batch_dict["batch_cls_preds"] = self.forward_ret_dict["cls"].flatten()
        return batch_dict

    def get_loss(self, tb_dict: Any = None) -> tuple[Tensor, dict[str, float]]:
        found = self.forward_ret_dict
        return found["cls"].sigmoid().mean() + found["box"].abs().mean(), {}


class FlatteningHead(ViewingHead):
    """A head that needs a map in rows."""

    def read(self, batch_dict: Batch) -> Tensor:
        maps: Tensor = batch_dict["spatial_features_2d"]
        return maps.view(len(maps), -1).view(maps.shape)


class DrawingHead(ViewingHead):
    """A head whose forward draws from each generator."""

    def forward(self, batch_dict: Batch) -> Batch:
        batch_dict = super().forward(batch_dict)
        scale = random.random() + np.random.rand()
        self.forward_ret_dict["cls"] = nn.functional.dropout(self.forward_ret_dict["cls"], 0.5) * scale
        return batch_dict


def pillar_batch(number: int = 0, pillars: int = 12) -> Batch:
    """A batch of two frames with voxels, on the CPU."""
    draw = torch.Generator().manual_seed(number)
    counts = torch.arange(pillars) % SLOTS + 1
    voxels = torch.randn(pillars, SLOTS, 4, generator=draw)
    cells = torch.randperm(2 * HEIGHT * WIDTH, generator=draw)[:pillars]
    sample, cell = cells // (HEIGHT * WIDTH), cells % (HEIGHT * WIDTH)
    coords = torch.stack([sample, 0 * cell, cell // WIDTH, cell % WIDTH], dim=1).int()
    return {
        "voxels": voxels * (torch.arange(SLOTS) < counts.unsqueeze(1)).unsqueeze(2),
        "voxel_num_points": counts,
        "voxel_coords": coords,
        "gt_boxes": torch.randn(2, 3, 4, generator=draw),
        "batch_size": 2,
    }


def pillar_detector(standin: Standin, names: Any, options: Any = None, **parts: Any) -> Any:
    """The stand-in's PointPillar with these parts, in train mode; ``parts`` replaces some of them."""
    ours = {"PillarVFE": PillarVFE, "MapToBEV": Scatter, "Backbone2D": Backbone2D, "DenseHead": ViewingHead}
    home = standin.module("pcdet.models.parts")
    for name, kind in {**ours, **parts}.items():
        setattr(home, name, kind)
    return standin.build("pointpillar", names, **(options or {}))


def run(model: Any, number: int = 0, **more: Any) -> SimpleNamespace:
    """One forward on a batch: its loss (train mode), and the batch after it."""
    batch = pillar_batch(number, **more)
    result = model(batch)
    loss = result[0]["loss"] if model.training else None
    return SimpleNamespace(loss=loss, batch=batch, maps=batch["spatial_features_2d"])
