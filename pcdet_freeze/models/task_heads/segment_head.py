"""SegmentHead: semantic class of each point, from the features of its cell and of the point itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.errors import DataError
from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.loss_normalization import Normalizers, for_log, normalizers_of
from pcdet_freeze.models.map_layers import Conv2d
from pcdet_freeze.models.registry import TASK_HEADS
from pcdet_freeze.models.task_heads.losses import lovasz_softmax_sum
from pcdet_freeze.models.task_heads.segment_settings import WHERE, SegmentHeadSettings, number_of_classes
from pcdet_freeze.models.task_heads.segment_targets import cell_means as cell_means
from pcdet_freeze.models.task_heads.segment_targets import evenly_spaced, targets_of
from pcdet_freeze.ops.bev_cells import IGNORE, cell_majority, cells_of, in_cells
from pcdet_freeze.utils.devices import host_copy, is_accelerator


@TASK_HEADS.register
class SegmentHead(nn.Module):
    """Classifies points with a shared MLP on point features and the map features of the point's cell.

    ``forward_ret_dict`` stores the logits of the last forward and, in train mode, the targets. Copies and
    pickles of the head do not contain it.
    """

    Settings = SegmentHeadSettings
    reads = ("seg_features_2d", "points")
    writes = ("point_logits", "cell_logits")
    reads_train = ("point_labels",)
    class_weights: Tensor

    def __init__(self, settings: SegmentHeadSettings, context: BuildContext) -> None:
        super().__init__()
        given = context.features_of("seg_features_2d", WHERE)
        self.settings = settings
        self.num_class = number_of_classes(settings, context)
        self.limits = context.point_cloud_range
        layers: list[nn.Module] = []
        width = given.channels + 2 * context.num_point_features + 2
        for wider in settings.point_filters:
            layers += [nn.Linear(width, wider, bias=False), nn.BatchNorm1d(wider, eps=1e-3), nn.ReLU()]
            width = wider
        self.point_layers = nn.Sequential(*layers)
        self.point_cls = nn.Linear(width, self.num_class)
        self.cell_cls = Conv2d(given.channels, self.num_class, 1) if settings.cell_labels else None
        weights = settings.loss_config.class_weights or (1.0,) * self.num_class
        self.register_buffer("class_weights", torch.tensor(weights), persistent=False)
        self.forward_ret_dict: dict[str, Any] = {}

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Predict; in train mode also select the points of the loss.

        Reads:
            seg_features_2d: (B, C, H, W) over the point cloud range, H along y, W along x
            points: (N, 1 + columns) [sample, x, y, z, ...], metres
            point_labels (train): (N,) int64 in 0..classes - 1, or 255 (ignored)
            has_point_labels (train, optional): (B,) bool, labelled frames; default: all
        Writes (in eval mode):
            point_logits: (N, classes)
            cell_logits: (B, classes, H, W), with CELL_LABELS
        """
        features, points = batch_dict["seg_features_2d"], batch_dict["points"]
        shape = features.shape[2:]
        cells = cells_of(points, self.limits, shape)
        cell_logits = None if self.cell_cls is None else self.cell_cls(features)
        if not self.training:
            self.forward_ret_dict = {}
            batch_dict["point_logits"] = self.point_logits(
                features, self.point_features(points, cells, shape, len(features)), cells
            )
            if cell_logits is not None:
                batch_dict["cell_logits"] = cell_logits
            return batch_dict
        most = self.settings.max_points
        labels, sizes = targets_of(batch_dict, len(features), self.num_class, count_points=most is not None)
        chosen = evenly_spaced(points[:, 0].long(), sizes, most)
        of_points = self.point_features(points, cells, shape, len(features))
        self.forward_ret_dict = {
            "logits": self.point_logits(features, of_points[chosen], cells[chosen]),
            "labels": labels[chosen],
            "frames": points[chosen, 0].long(),
            "batch_size": len(features),
        }
        if cell_logits is not None:
            self.forward_ret_dict["cell_logits"] = cell_logits.permute(0, 2, 3, 1).flatten(0, 2)
            self.forward_ret_dict["cell_labels"] = cell_majority(
                cells, labels, self.num_class, len(self.forward_ret_dict["cell_logits"])
            )
            of_cell = torch.arange(len(self.forward_ret_dict["cell_logits"]), device=points.device)
            self.forward_ret_dict["cell_frames"] = of_cell // (shape[0] * shape[1])
        return batch_dict

    def point_features(self, points: Tensor, cells: Tensor, shape: torch.Size, samples: int) -> Tensor:
        """(N, 2 columns + 2): columns, columns minus their mean over the cell, offset in the cell."""
        place = in_cells(points, self.limits, shape)
        count = samples * shape[0] * shape[1]
        offset = torch.stack([value - value.floor() - 0.5 for value in place], dim=1)
        columns = points[:, 1:]
        return torch.cat([columns, columns - cell_means(columns, cells, count), offset], dim=1)

    def point_logits(self, features: Tensor, point_features: Tensor, cells: Tensor) -> Tensor:
        """(N, classes) logits of points with ``point_features`` in the cells ``cells`` (N,) of the map."""
        if self.training and len(cells) < 2:
            raise DataError(
                f"{WHERE} needs at least two points for training; the batch has {len(cells)}. Remove empty "
                "frames from the split."
            )
        at_point = features.permute(0, 2, 3, 1).flatten(0, 2)[cells]
        return self.point_cls(self.point_layers(torch.cat([at_point, point_features], dim=1)))

    def get_loss(self, tb_dict: dict[str, float] | None = None) -> tuple[Tensor, dict[str, float]]:
        """Loss of the last forward in train mode, and ``tb_dict`` with its terms."""
        state, weights = self.forward_ret_dict, self.settings.loss_config
        if "labels" not in state:
            raise DataError("get_loss requires a forward in train mode before it; there was none")
        parts, counts = {}, normalizers_of(self)
        parts["segment_loss_ce"], parts["segment_loss_lovasz"] = self._losses("", counts, 0)
        if "cell_labels" in state:
            both = self._losses("cell_", counts, 2)
            parts["segment_loss_cell"] = (both[0] + both[1]) * weights.cell_weight
        loss = torch.stack(list(parts.values())).sum()
        figures = for_log(torch.stack([*parts.values(), loss]))
        tb_dict = {} if tb_dict is None else tb_dict
        tb_dict.update(zip([*parts, "segment_loss"], figures, strict=True))
        return loss, tb_dict

    def add_predictions(self, batch_dict: dict[str, Any], pred_dicts: list[dict[str, Any]]) -> None:
        """Add to the dict of each sample, in eval mode:

        * ``pred_point_labels``: (N_i,) int64, in the order of the sample's rows in ``points``
        * ``pred_bev_labels``: (H, W) int64, with CELL_LABELS
        """
        found = batch_dict if "pred_point_labels" in batch_dict else self.predictions(batch_dict)
        labels, points = found["pred_point_labels"], batch_dict["points"]
        sample = host_copy(points)[:, 0].long().to(labels.device)
        for number, prediction in enumerate(pred_dicts):
            prediction["pred_point_labels"] = labels[sample == number]
            if "pred_bev_labels" in found:
                prediction["pred_bev_labels"] = found["pred_bev_labels"][number]

    def predictions(self, batch_dict: dict[str, Any]) -> dict[str, Tensor]:
        """``pred_point_labels`` of all points (N,), and with CELL_LABELS ``pred_bev_labels`` (B, H, W)."""
        found = {"pred_point_labels": batch_dict["point_logits"].argmax(dim=1)}
        if "cell_logits" in batch_dict:
            found["pred_bev_labels"] = batch_dict["cell_logits"].argmax(dim=1)
        return found

    def _losses(self, rows: str, counts: Normalizers | None, first: int) -> tuple[Tensor, Tensor]:
        """Weighted cross-entropy and Lovász-softmax of the labelled rows; zero without labelled rows.

        Args:
            rows: prefix of the keys in ``forward_ret_dict``: "" (points) or "cell_".
            counts: with several forwards: the sums of all of them.
            first: index in ``counts`` of the labelled frames; then the weight of the rows.
        """
        state, weights = self.forward_ret_dict, self.settings.loss_config
        logits, labels, frames = (state[f"{rows}{key}"] for key in ("logits", "labels", "frames"))
        is_counted = labels != IGNORE
        if is_accelerator(labels):
            # the host would wait for the number of labelled rows: the others go to a further frame
            frames = frames.where(is_counted, state["batch_size"])
        else:
            counted = is_counted.nonzero().squeeze(1)
            logits, labels, frames, is_counted = (
                part[counted] for part in (logits, labels, frames, is_counted)
            )
        logits, known = logits.float(), labels.where(is_counted, 0)
        entropy = F.cross_entropy(logits, labels, self.class_weights, ignore_index=IGNORE, reduction="sum")
        jaccard = logits.sum() * 0
        if weights.lovasz_weight:
            jaccard = lovasz_softmax_sum(logits.softmax(dim=1), known, frames, state["batch_size"])
        if counts is None:
            weight = self.class_weights[known].where(is_counted, 0).sum()
            entropy = entropy / weight.clamp(min=1e-6)
            jaccard = jaccard / self._labelled(frames).clamp(min=1)
        else:
            entropy, jaccard = counts.mean(entropy, first + 1, 1e-6), counts.mean(jaccard, first)
        return entropy * weights.ce_weight, jaccard * weights.lovasz_weight

    def normalizers(self) -> Tensor:
        """Of the last training forward: frames with labelled points, weight of the points, the same of cells.

        (2,), or (4,) with CELL_LABELS.
        """
        state, found = self.forward_ret_dict, []
        for rows in ("", "cell_") if "cell_labels" in state else ("",):
            counted = state[f"{rows}labels"] != IGNORE
            weights = self.class_weights[state[f"{rows}labels"].where(counted, 0)]
            # rows that do not count are filed under a further frame
            frames = state[f"{rows}frames"].where(counted, state["batch_size"])
            found += [self._labelled(frames), weights.where(counted, 0).sum()]
        return torch.stack(found)

    def _labelled(self, frames: Tensor) -> Tensor:
        """Number of frames of the batch that are in ``frames`` (N,) int64."""
        batch_size: int = self.forward_ret_dict["batch_size"]
        seen = self.class_weights.new_zeros(batch_size + 1).index_fill_(0, frames, 1.0)
        return seen[:batch_size].sum()

    def __getstate__(self) -> dict[str, Any]:
        # outputs belong to the last batch, and non-leaf tensors can be neither copied nor pickled
        return {**self.__dict__, "forward_ret_dict": {}}
