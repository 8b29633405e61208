"""LaneHead: lane confidence and lane number of each cell, in the format of K-Lane (arXiv:2110.11048)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.models.backbones_2d.encoder_decoder import conv_norm_relu
from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.loss_normalization import for_log, normalizers_of
from pcdet_freeze.models.map_layers import Conv2d, MapSequential, run_together
from pcdet_freeze.models.partial_labels import frame_names, indices_of, labelled_frames
from pcdet_freeze.models.registry import TASK_HEADS
from pcdet_freeze.models.task_heads.lane_polylines import lane_polylines
from pcdet_freeze.models.task_heads.losses import dice_of_sums, dice_sums, lane_class_sums
from pcdet_freeze.ops.lanes import NO_LANE
from pcdet_freeze.utils.devices import host_copy, keep_host_copy
from pcdet_freeze.utils.settings.rules import Count, Length, Rule, at_least, between, length, whole
from pcdet_freeze.utils.settings.sections import Section

WHERE = "MODEL.LANE_HEAD (LaneHead)"


@dataclass(frozen=True)
class LaneLossSettings(Section):
    """``LOSS_CONFIG``."""

    conf_weight: Annotated[float, at_least(0)] = 1.0
    """of the dice loss of the confidence"""
    cls_weight: Annotated[float, at_least(0)] = 1.0
    """of the cross-entropy of the lanes"""
    background_weight: Annotated[float, at_least(0)] = 0.2
    """of cells without lane in that cross-entropy"""


@dataclass(frozen=True)
class LaneHeadSettings(Section):
    """``MODEL.LANE_HEAD`` of LaneHead."""

    num_lanes: Annotated[int, between(1, NO_LANE - 1)]
    """lane maps hold 0..NUM_LANES - 1, or 255: no lane"""
    num_filters: Count = 32
    map_size: Annotated[tuple[Count, ...], length(2, "[rows, columns]")] | None = None
    """rows (y) and columns (x) of the lane map; null: those of the data set's, else of the voxel grid"""
    conf_thresh: Annotated[float, Rule("a number above 0, up to 1", lambda value: 0 < value <= 1)] = 0.5
    """a cell is lane from this confidence on"""
    min_cells: Annotated[int, whole(0)] = 8
    """a lane with fewer cells gives no polyline"""
    polyline_step: Length = 1.0
    """metres between the vertices of a polyline"""
    loss_config: LaneLossSettings = field(default_factory=LaneLossSettings)


@TASK_HEADS.register
class LaneHead(nn.Module):
    """Predicts confidence (lane or not) and class (lane number or background) of each cell of the lane map.

    ``forward_ret_dict`` stores the logits of the last forward and, in train mode, the targets. Copies and
    pickles of the head do not contain it.
    """

    Settings = LaneHeadSettings
    reads = ("lane_features_2d",)
    writes = ("lane_conf_logits", "lane_cls_logits")
    reads_train = ("lane_map",)

    def __init__(self, settings: LaneHeadSettings, context: BuildContext) -> None:
        super().__init__()
        given = context.features_of("lane_features_2d", WHERE)
        self.settings = settings
        self.limits = context.point_cloud_range
        self.map_size = _map_size(settings, context)
        width = settings.num_filters
        self.shared = MapSequential(*conv_norm_relu(given.channels, width, 0.1))
        self.refine = MapSequential(*conv_norm_relu(width, width, 0.1))
        self.conf = Conv2d(width, 1, 1)
        self.cls = Conv2d(width, settings.num_lanes + 1, 1)
        self.forward_ret_dict: dict[str, Tensor] = {}

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Predict; in train mode also validate the lane maps.

        Reads:
            lane_features_2d: (B, C, H', W') over the point cloud range, H' along y, W' along x
            lane_map (train): (B, H, W) uint8, lane number, or 255: none
            has_lane_map (train, optional): (B,) bool, labelled frames; default: all
        Writes (in eval mode):
            lane_conf_logits: (B, 1, H, W)
            lane_cls_logits: (B, lanes + 1, H, W), the background last
        """
        x = self.shared(batch_dict["lane_features_2d"])
        x = self.refine(F.interpolate(x, size=self.map_size, mode="bilinear", align_corners=False))
        conf, cls = run_together([self.conf, self.cls], x)
        self.forward_ret_dict = {}
        if self.training:
            frames, lane_map = self._targets(batch_dict, len(conf))
            self.forward_ret_dict = {"conf": conf[frames], "cls": cls[frames], "lane_map": lane_map}
        else:
            batch_dict["lane_conf_logits"], batch_dict["lane_cls_logits"] = conf, cls
        return batch_dict

    def get_loss(self, tb_dict: dict[str, float] | None = None) -> tuple[Tensor, dict[str, float]]:
        """Loss of the last forward in train mode, and ``tb_dict`` with its terms."""
        state, weights = self.forward_ret_dict, self.settings.loss_config
        if "lane_map" not in state:
            raise DataError("get_loss requires a forward in train mode before it; there was none")
        counts, (sums, entropy, weight) = normalizers_of(self), self._sums()
        if counts is None:
            dice, classes = dice_of_sums(*sums), entropy / weight.clamp(min=1e-6)
        else:
            overlap, found, true = (counts.summed(own, 1 + place) for place, own in enumerate(sums))
            dice = counts.share(dice_of_sums(overlap, found, true), len(state["lane_map"]))
            classes = counts.mean(entropy, 4, 1e-6)
        parts = {"lane_loss_conf": dice * weights.conf_weight, "lane_loss_cls": classes * weights.cls_weight}
        loss = torch.stack(list(parts.values())).sum()
        figures = for_log(torch.stack([*parts.values(), loss]))
        tb_dict = {} if tb_dict is None else tb_dict
        tb_dict.update(zip([*parts, "lane_loss"], figures, strict=True))
        return loss, tb_dict

    def normalizers(self) -> Tensor:
        """(5,) of the last training forward: labelled frames, the sums of Dice (3), weight of the cells."""
        with torch.no_grad():
            sums, _, weight = self._sums()
        frames = weight.new_full((), len(self.forward_ret_dict["lane_map"]))
        return torch.stack([frames, *sums, weight])

    def _sums(self) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, Tensor]:
        """Sums over the labelled cells: of Dice, the cross-entropy, the weights of the cross-entropy."""
        state, settings = self.forward_ret_dict, self.settings
        lane = state["lane_map"] != NO_LANE
        classes = torch.where(lane, state["lane_map"], settings.num_lanes)
        confidence = state["conf"][:, 0].float().sigmoid()
        background = settings.loss_config.background_weight
        entropy, weight = lane_class_sums(state["cls"], classes, background)
        return dice_sums(confidence, lane.to(confidence.dtype)), entropy, weight

    def add_predictions(self, batch_dict: dict[str, Any], pred_dicts: list[dict[str, Any]]) -> None:
        """Add to the dict of each sample, in eval mode:

        * ``pred_lane_map``: (H, W) uint8, lane number, or 255: none
        * ``pred_lane_conf``: (H, W) float32 in [0, 1]
        * ``pred_lanes``: polylines (n, 2) float32 x, y in metres (LiDAR frame), one per detected lane
        """
        found = batch_dict if "pred_lane_map" in batch_dict else self.predictions(batch_dict)
        settings = self.settings
        for prediction, lane_map, conf in zip(
            pred_dicts, found["pred_lane_map"], found["pred_lane_conf"], strict=True
        ):
            prediction["pred_lane_map"], prediction["pred_lane_conf"] = lane_map, conf
            prediction["pred_lanes"] = lane_polylines(
                lane_map, conf, self.limits, settings.num_lanes, settings.min_cells, settings.polyline_step
            )

    def predictions(self, batch_dict: dict[str, Any]) -> dict[str, Tensor]:
        """``pred_lane_map`` and ``pred_lane_conf`` of all samples, (B, H, W)."""
        confidence = batch_dict["lane_conf_logits"][:, 0].float().sigmoid()
        lane = batch_dict["lane_cls_logits"][:, :-1].argmax(dim=1).to(torch.uint8)
        maps = torch.where(confidence >= self.settings.conf_thresh, lane, NO_LANE)
        return {"pred_lane_map": maps, "pred_lane_conf": confidence}

    def _targets(self, batch_dict: dict[str, Any], samples: int) -> tuple[Tensor, Tensor]:
        """Labelled frames (n,) int64 and their lane maps (n, H, W) int64; raises DataError if invalid."""
        flags = labelled_frames(batch_dict, "lane_map", WHERE)
        frames = None if flags is None else indices_of(flags)
        if "lane_map" not in batch_dict:
            assert frames is not None
            return frames, torch.zeros(0, *self.map_size, dtype=torch.long, device=frames.device)
        lane_map = batch_dict["lane_map"]
        if frames is None:
            frames = torch.arange(samples, device=lane_map.device)
            frames = keep_host_copy(frames, torch.arange(samples))
        if tuple(lane_map.shape) != (samples, *self.map_size):
            raise DataError(
                f"lane_map must have {samples} samples with {self.map_size[0]} rows (y) and "
                f"{self.map_size[1]} columns (x), like the predictions; got {tuple(lane_map.shape)}. Set "
                "MODEL.LANE_HEAD.MAP_SIZE, or use maps of that size."
            )
        self._check_lanes(batch_dict, host_copy(frames))
        return frames, lane_map[frames].long()

    def _check_lanes(self, batch_dict: dict[str, Any], frames: Tensor) -> None:
        """Raise DataError if a lane map of ``frames`` (n,), on the CPU, has other numbers than lanes."""
        lane_map = host_copy(batch_dict["lane_map"])[frames]
        wrong = (lane_map != NO_LANE) & ((lane_map < 0) | (lane_map >= self.settings.num_lanes))
        if bool(wrong.any()):
            inside = torch.zeros(len(batch_dict["lane_map"]), dtype=torch.bool)
            inside[frames] = wrong.flatten(1).any(dim=1)
            raise DataError(
                f"lane_map must contain 0..{self.settings.num_lanes - 1} or {NO_LANE} (no lane); got "
                f"{torch.unique(lane_map[wrong])[:8].tolist()} in the frames "
                f"{frame_names(batch_dict, inside)}: raise MODEL.LANE_HEAD.NUM_LANES, or renumber the lanes"
            )

    def __getstate__(self) -> dict[str, Any]:
        # outputs belong to the last batch, and non-leaf tensors can be neither copied nor pickled
        return {**self.__dict__, "forward_ret_dict": {}}


def _map_size(settings: LaneHeadSettings, context: BuildContext) -> tuple[int, int]:
    """Rows and columns of lane maps; raises ConfigError if config and data set disagree."""
    given = context.lane_map_shape
    if settings.map_size is not None and given and tuple(settings.map_size) != tuple(given):
        raise ConfigError(
            f"{WHERE}: MAP_SIZE must be the size of the lane maps of the data set, {list(given)}; "
            f"got {list(settings.map_size)}"
        )
    if settings.map_size is None and not given:
        context.need_voxels(WHERE)
    rows, columns = settings.map_size or given or (context.grid_size[1], context.grid_size[0])
    return rows, columns
