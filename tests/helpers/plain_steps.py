"""A PointPillars and a SECOND training step in plain torch and spconv: what ours are timed against.

The arithmetic is that of OpenPCDet, written down plainly: a canvas a sample, targets a sample and a class,
losses over all anchors with weights that are mostly zero, spconv's modules as they come. The weights are
those of the model given; convolutions and norms of the 2D part are the same calls on both sides.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.ops import sparse
from pcdet_freeze.ops.boxes import boxes3d_nearest_bev_iou

SCALE = {"cls": 1.0, "loc": 2.0, "dir": 0.2}


def pillar_features(vfe: Any, batch: dict[str, Any]) -> Tensor:
    """(M, F) of a PillarVFE with one layer (PointPillars, arXiv:1812.05784, section 2.1)."""
    voxels, counts, coords = batch["voxels"], batch["voxel_num_points"], batch["voxel_coords"]
    xyz = voxels[:, :, :3]
    mean = xyz.sum(dim=1, keepdim=True) / counts.to(xyz.dtype).view(-1, 1, 1)
    offsets = zip(vfe.voxel_size, vfe.centre_of_first, strict=True)
    places = [coords[:, 3 - i].to(xyz.dtype) * size + first for i, (size, first) in enumerate(offsets)]
    centre = torch.stack(places, dim=1)
    features = torch.cat([voxels, xyz - mean, xyz - centre.unsqueeze(1)], dim=-1)
    filled = torch.arange(voxels.shape[1]).view(1, -1) < counts.view(-1, 1)
    features = features * filled.unsqueeze(-1)
    layer = vfe.pfn_layers[0]
    features = layer.norm(layer.linear(features).permute(0, 2, 1)).permute(0, 2, 1)
    return F.relu(features).max(dim=1).values


def scattered(features: Tensor, batch: dict[str, Any], rows: int, columns: int) -> Tensor:
    """(B, F, rows, columns), a canvas a sample."""
    coords, canvases = batch["voxel_coords"].long(), []
    for sample in range(batch["batch_size"]):
        mine = coords[:, 0] == sample
        canvas = features.new_zeros(features.shape[1], rows * columns)
        canvas[:, coords[mine, 2] * columns + coords[mine, 3]] = features[mine].t()
        canvases.append(canvas.view(-1, rows, columns))
    return torch.stack(canvases)


def plain_conv(ours: Any) -> nn.Module:
    """spconv's own layer for one of ours, with its weight."""
    spconv = sparse._spconv()
    kind = getattr(spconv, type(ours).__name__)
    arguments = {"stride": ours.stride, "padding": ours.padding, "bias": False, "indice_key": ours.shared_key}
    conv = kind(
        ours.in_channels, ours.out_channels, ours.kernel_size, algo=spconv.ConvAlgo.Native, **arguments
    )
    conv.weight = ours.weight
    return conv


def plain_sparse(ours: nn.Module) -> nn.Module:
    """A sequence of ours as spconv's, nested ones too."""
    if isinstance(ours, nn.Sequential):
        return sparse._spconv().SparseSequential(*[plain_sparse(layer) for layer in ours])
    return plain_conv(ours) if hasattr(ours, "shared_key") else ours


class PlainSecond:
    """Voxel features, sparse backbone and dense map of SECOND, on the weights of ours."""

    def __init__(self, model: Any) -> None:
        backbone = model.backbone_3d
        names = ("conv_input", "conv1", "conv2", "conv3", "conv4", "conv_out")
        self.layers = [plain_sparse(getattr(backbone, name)) for name in names]
        self.shape = list(backbone.sparse_shape)

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        voxels, counts = batch["voxels"], batch["voxel_num_points"]
        features = voxels.sum(dim=1) / counts.clamp(min=1).to(voxels.dtype).unsqueeze(1)
        x = sparse._spconv().SparseConvTensor(
            features, batch["voxel_coords"].int(), self.shape, batch["batch_size"]
        )
        for layer in self.layers:
            x = layer(x)
        # spconv's own dense() asks torch for an index that it no longer takes
        volume = x.features.new_zeros(x.batch_size, *x.spatial_shape, x.features.shape[1])
        volume[x.indices.long().unbind(1)] = x.features
        return volume.permute(0, 4, 1, 2, 3).contiguous().flatten(1, 2)


def targets_of(head: Any, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (B, A) and box codes (B, A, 7): a sample after the other, a class after the other."""
    labels, codes = [], []
    for boxes in gt_boxes:
        boxes = boxes[boxes[:, 7] > 0]
        parts = [
            assigned(head, number, anchors, boxes) for number, anchors in enumerate(head.anchors, start=1)
        ]
        labels.append(torch.cat([part[0] for part in parts], dim=-1).flatten())
        codes.append(torch.cat([part[1] for part in parts], dim=-2).reshape(-1, 7))
    return torch.stack(labels), torch.stack(codes)


def assigned(head: Any, number: int, anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Labels (H, W, anchors a cell) and codes (H, W, anchors a cell, 7) of one class."""
    flat, mine = anchors.reshape(-1, 7), boxes[boxes[:, 7] == number]
    labels, codes = torch.full((len(flat),), -1), flat.new_zeros(len(flat), 7)
    limits = head.anchor_generator.classes[number - 1]
    overlap = boxes3d_nearest_bev_iou(flat, mine[:, :7])
    if len(mine):
        best, winner = overlap.max(dim=1)
        top = overlap.max(dim=0).values
        forced = (overlap == torch.where(top > 0, top, -1)).any(dim=1)
        positive = forced | (best >= limits.matched_threshold)
        labels[best < limits.unmatched_threshold] = 0
        labels[positive] = number
        codes[positive] = head.box_coder.encode(mine[winner[positive], :7], flat[positive])
    else:
        labels[:] = 0
    cells = anchors.shape[1:3]
    return labels.view(*cells, -1), codes.view(*cells, -1, 7)


def head_loss(head: Any, features: Tensor, gt_boxes: Tensor) -> Tensor:
    """Class, box and direction losses over all anchors (SECOND, Sensors 2018, section 3.2)."""
    samples = len(features)
    scores, boxes, directions = (
        conv(features).permute(0, 2, 3, 1).reshape(samples, -1, columns)
        for conv, columns in ((head.conv_cls, head.num_class), (head.conv_box, 7), (head.conv_dir_cls, 2))
    )
    labels, codes = targets_of(head, gt_boxes)
    positive = (labels > 0).to(scores.dtype)
    normal = positive.sum(dim=1, keepdim=True).clamp(min=1)
    weights = ((labels >= 0).to(scores.dtype) / normal).unsqueeze(-1)
    one_hot = F.one_hot(labels.clamp(min=0), head.num_class + 1)[..., 1:].to(scores.dtype)
    chance = scores.sigmoid()
    alpha = one_hot * 0.25 + (1 - one_hot) * 0.75
    missed = one_hot * (1 - chance) + (1 - one_hot) * chance
    entropy = scores.clamp(min=0) - scores * one_hot + torch.log1p(torch.exp(-scores.abs()))
    cls_loss = (alpha * missed.square() * entropy * weights).sum() / samples
    share = (positive / normal).unsqueeze(-1)
    sine = (boxes[..., 6:].sin() * codes[..., 6:].cos(), boxes[..., 6:].cos() * codes[..., 6:].sin())
    difference = (torch.cat([boxes[..., :6], sine[0]], -1) - torch.cat([codes[..., :6], sine[1]], -1)).abs()
    smooth = torch.where(difference < 1 / 9, 4.5 * difference.square(), difference - 1 / 18)
    box_loss = (smooth * share).sum() / samples
    anchors = torch.cat([a.permute(1, 2, 0, 3, 4, 5).flatten(2, 4) for a in head.anchors], dim=2).view(-1, 7)
    turned = codes[..., 6] + anchors[:, 6] - head.settings.dir_offset
    sector = (
        ((turned - torch.floor(turned / (2 * math.pi)) * 2 * math.pi) / math.pi).floor().long().clamp(0, 1)
    )
    entropy = F.cross_entropy(directions.reshape(-1, 2), sector.flatten(), reduction="none")
    dir_loss = (entropy.view(samples, -1) * share.squeeze(-1)).sum() / samples
    return SCALE["cls"] * cls_loss + SCALE["loc"] * box_loss + SCALE["dir"] * dir_loss


def bev_features(backbone: Any, maps: Tensor) -> Tensor:
    """The 2D backbone: the same calls as ours."""
    ups = []
    for block, deblock in zip(backbone.blocks, backbone.deblocks, strict=True):
        maps = block(maps)
        ups.append(deblock(maps))
    return torch.cat(ups, dim=1)


class PlainStep:
    """Loss of a training forward of ``model``, a PointPillar or a SECONDNet of OpenPCDet's KITTI configs."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.second = PlainSecond(model) if hasattr(model, "backbone_3d") else None

    def __call__(self, batch: dict[str, Any]) -> Tensor:
        model = self.model
        if self.second is not None:
            maps = self.second(batch)
        else:
            scatter = model.map_to_bev_module
            maps = scattered(pillar_features(model.vfe, batch), batch, scatter.height, scatter.width)
        return head_loss(model.dense_head, bev_features(model.backbone_2d, maps), batch["gt_boxes"])
