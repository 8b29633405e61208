"""Toy modules of every kind that a detector of OpenPCDet is made of. All take and return ``batch_dict``."""

import numpy as np
import torch
from torch import nn

WIDTH = 8


def block(width=WIDTH):
    return nn.Sequential(nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.1))


def rows(features):
    return features.reshape(-1, features.shape[-1])


class MeanVFE(nn.Module):
    def forward(self, batch_dict):
        batch_dict["voxel_features"] = rows(batch_dict["points"]).repeat(1, 2)
        return batch_dict


class PillarVFE(nn.Module):
    def __init__(self):
        super().__init__()
        self.pfn_layers = nn.ModuleList(
            [nn.Sequential(nn.Linear(4, WIDTH, bias=False), nn.BatchNorm1d(WIDTH))]
        )

    def forward(self, batch_dict):
        features = rows(batch_dict["points"])
        for layer in self.pfn_layers:
            features = layer(features)
        batch_dict["voxel_features"] = features
        return batch_dict


class ImageVFE(nn.Module):
    """Has a loss of its own, and all parameters in one of its two parts."""

    def __init__(self):
        super().__init__()
        reduce = nn.Sequential(nn.Linear(4, WIDTH, bias=False), nn.BatchNorm1d(WIDTH))
        self.ffn = nn.ModuleDict({"ddn": nn.Linear(WIDTH, 1), "channel_reduce": reduce})
        self.f2v = nn.ReLU()

    def forward(self, batch_dict):
        features = self.ffn["channel_reduce"](rows(batch_dict["points"]))
        self.depth = self.ffn["ddn"](features)
        batch_dict["voxel_features"] = self.f2v(features)
        return batch_dict

    def get_loss(self, tb_dict=None):
        loss = self.depth.square().mean()
        return loss, {"ddn_loss": loss.item()}


class Backbone3D(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv_input, self.conv1 = block(), block()

    def forward(self, batch_dict):
        batch_dict["encoded"] = self.conv1(self.conv_input(batch_dict["voxel_features"]))
        return batch_dict


class FocalBackbone3D(Backbone3D):
    """A backbone with a loss of its own."""

    def forward(self, batch_dict):
        batch_dict = super().forward(batch_dict)
        self.importance = batch_dict["encoded"]
        return batch_dict

    def get_loss(self, tb_dict=None):
        loss = self.importance.square().mean()
        tb_dict["loss_box_of_pts"] = loss.item()
        return loss, tb_dict


class TransformerBackbone3D(nn.Module):
    """Owns parameters beside its children: what adam_onecycle never receives."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.randn(WIDTH) * 0.1)
        attention = nn.MultiheadAttention(WIDTH, 2, dropout=0.1, batch_first=True)
        self.stage_0 = nn.ModuleList([nn.ModuleDict({"self_attn": attention})])
        self.residual_norm_stage_0 = nn.ModuleList([nn.LayerNorm(WIDTH)])

    def forward(self, batch_dict):
        features = (batch_dict["voxel_features"] + self.token).unsqueeze(0)
        for part, norm in zip(self.stage_0, self.residual_norm_stage_0, strict=True):
            features = norm(features + part["self_attn"](features, features, features)[0])
        batch_dict["encoded"] = features[0]
        return batch_dict


class MapToBEV(nn.Module):
    def forward(self, batch_dict):
        found = batch_dict.get("encoded")
        batch_dict["spatial_features"] = batch_dict["voxel_features"] if found is None else found
        return batch_dict


class PFE(nn.Module):
    def __init__(self):
        super().__init__()
        self.vsa_point_feature_fusion = block()

    def forward(self, batch_dict):
        batch_dict["point_features"] = self.vsa_point_feature_fusion(batch_dict["voxel_features"])
        return batch_dict


class SetAbstraction(PFE):
    """Writes into its config while it is built, and is built differently from the second instance on."""

    reads_config = True
    count = 0

    def __init__(self, model_cfg):
        super().__init__()
        SetAbstraction.count += 1
        for widths in model_cfg.MLPS:
            widths.insert(0, WIDTH)
        if SetAbstraction.count < 2:
            self.register_buffer("grid", torch.arange(sum(map(len, model_cfg.MLPS))))


class PointBackbone(PFE):
    """A backbone whose output is points."""


class Backbone2D(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([block() for _ in range(2)])
        self.deblocks = nn.ModuleList([block() for _ in range(2)])

    def forward(self, batch_dict):
        x = batch_dict["spatial_features"]
        ups = []
        for down, up in zip(self.blocks, self.deblocks, strict=True):
            x = down(x)
            ups.append(up(x))
        batch_dict["spatial_features_2d"] = sum(ups)
        return batch_dict


class Camera(nn.Module):
    """Stands for the image branch of a fusion model."""

    def __init__(self, reads, writes):
        super().__init__()
        self.reads_key, self.writes_key, self.net = reads, writes, block()

    def forward(self, batch_dict):
        batch_dict[self.writes_key] = self.net(batch_dict[self.reads_key])
        return batch_dict


class Fuser(nn.Module):
    """Camera features and LiDAR features become one map."""

    def __init__(self):
        super().__init__()
        self.net = block()

    def forward(self, batch_dict):
        both = batch_dict["spatial_features"] + batch_dict["spatial_features_img"]
        batch_dict["spatial_features"] = self.net(both)
        return batch_dict


class DenseHead(nn.Module):
    """Assigns targets in train mode; predicts boxes in eval mode, and where a roi_head wants them."""

    def __init__(self, predict_boxes_when_training=False):
        super().__init__()
        self.predict_boxes_when_training = predict_boxes_when_training
        self.conv_cls, self.conv_box = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, 4)
        self.forward_ret_dict = {}
        self.assigned = 0

    def assign_targets(self, gt_boxes):
        self.assigned += 1
        gt_boxes[..., 3] = 1.0  # writes into the labels, as one of the original heads does
        return {"box_target": gt_boxes.mean(dim=(0, 1))}

    def forward(self, batch_dict):
        features = batch_dict["spatial_features_2d"]
        cls_preds, box_preds = self.conv_cls(features), self.conv_box(features)
        self.forward_ret_dict = {"cls_preds": cls_preds, "box_preds": box_preds}
        if self.training:
            self.forward_ret_dict.update(self.assign_targets(batch_dict["gt_boxes"]))
        if not self.training or self.predict_boxes_when_training:
            batch_dict["batch_cls_preds"], batch_dict["batch_box_preds"] = cls_preds, box_preds
        return batch_dict

    def get_loss(self, tb_dict=None):
        tb_dict = {} if tb_dict is None else tb_dict
        found = self.forward_ret_dict
        cls_loss = torch.sigmoid(found["cls_preds"]).mean()
        box_loss = (found["box_preds"] - found["box_target"]).abs().mean()
        tb_dict.update({"rpn_loss_cls": cls_loss.item(), "rpn_loss_loc": box_loss.item()})
        return cls_loss + box_loss, tb_dict


class InlineLossHead(nn.Module):
    """Computes its loss in its forward, and leaves it in the batch."""

    def __init__(self):
        super().__init__()
        self.decoder = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.heatmap_head = nn.Linear(WIDTH, 1)

    def forward(self, batch_dict):
        features = batch_dict["spatial_features_2d"].unsqueeze(0)
        found = self.heatmap_head(self.decoder(features, features, features)[0])
        if self.training:
            batch_dict["loss"] = (found.mean() - batch_dict["gt_boxes"].mean()).square()
            batch_dict["tb_dict"] = {"loss_trans": batch_dict["loss"].item()}
        else:
            batch_dict["final_box_dicts"] = [{"pred_scores": found[0]}]
        return batch_dict


class PointHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.cls_layers = nn.Linear(WIDTH, 1)
        self.forward_ret_dict = {}
        self.assigned = 0

    def assign_targets(self, input_dict):
        self.assigned += 1
        return {"target": input_dict["gt_boxes"].mean()}

    def forward(self, batch_dict):
        scores = torch.sigmoid(self.cls_layers(batch_dict["point_features"]))
        self.forward_ret_dict = {"scores": scores}
        if self.training:
            self.forward_ret_dict.update(self.assign_targets(batch_dict))
        batch_dict["point_cls_scores"] = scores
        return batch_dict

    def get_loss(self, tb_dict=None):
        tb_dict = {} if tb_dict is None else tb_dict
        loss = (self.forward_ret_dict["scores"] - self.forward_ret_dict["target"]).square().mean()
        tb_dict["point_loss_cls"] = loss.item()
        return loss, tb_dict


class PointBoxHead(PointHead):
    """A point head that proposes boxes."""

    def __init__(self):
        super().__init__()
        self.box_layers = nn.Linear(WIDTH, 4)

    def forward(self, batch_dict):
        batch_dict = super().forward(batch_dict)
        batch_dict["batch_cls_preds"] = batch_dict["point_cls_scores"]
        boxes = batch_dict["batch_box_preds"] = self.box_layers(batch_dict["point_features"])
        self.forward_ret_dict["boxes"] = boxes
        return batch_dict

    def get_loss(self, tb_dict=None):
        loss, tb_dict = super().get_loss(tb_dict)
        return loss + self.forward_ret_dict["boxes"].square().mean(), tb_dict


class RoIHead(nn.Module):
    """Refines boxes: proposals without a graph, targets sampled by numpy's generator."""

    def __init__(self):
        super().__init__()
        self.shared_fc_layer, self.cls_layer = block(), nn.Linear(WIDTH, 1)
        self.forward_ret_dict = {}
        self.assigned = 0

    @torch.no_grad()
    def proposal_layer(self, batch_dict, nms_config):
        if batch_dict.get("rois") is None:
            count = 10 if nms_config == "TRAIN" else 5
            batch_dict["rois"] = batch_dict["batch_box_preds"][:count].detach()
        return batch_dict

    def assign_targets(self, batch_dict):
        self.assigned += 1
        chosen = np.random.permutation(len(batch_dict["rois"]))[:4]
        return {"rois": batch_dict["rois"][chosen], "target": batch_dict["gt_boxes"].mean()}

    def forward(self, batch_dict):
        batch_dict = self.proposal_layer(batch_dict, nms_config="TRAIN" if self.training else "TEST")
        targets = {}
        if self.training:
            targets = batch_dict.get("roi_targets_dict") or self.assign_targets(batch_dict)
            batch_dict["rois"] = targets["rois"]
        features = batch_dict.get("point_features", batch_dict.get("spatial_features_2d"))
        if features is None:
            features = batch_dict["voxel_features"]
        if "point_cls_scores" in batch_dict:
            features = features * batch_dict["point_cls_scores"]
        pooled = features[: len(batch_dict["rois"])] + batch_dict["rois"].mean()
        self.forward_ret_dict = {"rcnn_cls": self.cls_layer(self.shared_fc_layer(pooled)), **targets}
        if not self.training:
            batch_dict["batch_cls_preds"] = self.forward_ret_dict["rcnn_cls"]
        return batch_dict

    def get_loss(self, tb_dict=None):
        tb_dict = {} if tb_dict is None else tb_dict
        loss = (self.forward_ret_dict["rcnn_cls"] - self.forward_ret_dict["target"]).abs().mean()
        tb_dict["rcnn_loss"] = loss.item()
        return loss, tb_dict


class ScanToBEV(nn.Module):
    """Features of points (N, C), points (N, 4) with their frame first -> a map (B, C, 8, 8)."""

    num_bev_features, cells, low, size = WIDTH, 8, -1.5, 3.0

    def forward(self, batch_dict):
        points, features = batch_dict["points"], batch_dict["voxel_features"]
        cell = ((points[:, 1:3] - self.low) / self.size * self.cells).long().clamp(0, self.cells - 1)
        index = (points[:, 0].long() * self.cells + cell[:, 1]) * self.cells + cell[:, 0]
        empty = features.new_zeros(batch_dict["batch_size"] * self.cells**2, WIDTH)
        bev = empty.index_add(0, index, features)
        batch_dict["spatial_features"] = bev.view(-1, self.cells, self.cells, WIDTH).permute(0, 3, 1, 2)
        return batch_dict


class BEVBackbone(nn.Module):
    num_bev_features = WIDTH

    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH), nn.ReLU())

    def forward(self, batch_dict):
        batch_dict["spatial_features_2d"] = self.blocks(batch_dict["spatial_features"])
        return batch_dict


class BEVHead(DenseHead):
    """A dense head on a map."""

    def forward(self, batch_dict):
        bev = batch_dict["spatial_features_2d"]
        features = {**batch_dict, "spatial_features_2d": bev.permute(0, 2, 3, 1).flatten(1, 2)}
        found = super().forward(features)
        batch_dict.update({key: found[key] for key in found if key not in batch_dict})
        return batch_dict
