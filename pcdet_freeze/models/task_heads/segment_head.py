"""SegmentHead: semantic class of each point, from the features of its cell and of the point itself."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.models.context import BuildContext
from pcdet_freeze.models.partial_labels import frame_names, labelled_frames
from pcdet_freeze.models.registry import TASK_HEADS
from pcdet_freeze.models.task_heads.losses import lovasz_softmax
from pcdet_freeze.models.task_heads.segment_settings import SegmentHeadSettings
from pcdet_freeze.ops.bev_cells import IGNORE, cell_majority, cells_of, in_cells

WHERE = "MODEL.SEGMENT_HEAD (SegmentHead)"


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
        self.num_class = _number_of_classes(settings, context)
        self.limits = context.point_cloud_range
        layers: list[nn.Module] = []
        width = given.channels + 2 * context.num_point_features + 2
        for wider in settings.point_filters:
            layers += [nn.Linear(width, wider, bias=False), nn.BatchNorm1d(wider, eps=1e-3), nn.ReLU()]
            width = wider
        self.point_layers = nn.Sequential(*layers)
        self.point_cls = nn.Linear(width, self.num_class)
        self.cell_cls = nn.Conv2d(given.channels, self.num_class, 1) if settings.cell_labels else None
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
                features, self.point_features(points, cells, shape), cells
            )
            if cell_logits is not None:
                batch_dict["cell_logits"] = cell_logits
            return batch_dict
        labels = self._targets(batch_dict)
        chosen = self._subsample(len(points), points.device)
        self.forward_ret_dict = {
            "logits": self.point_logits(
                features, self.point_features(points, cells, shape)[chosen], cells[chosen]
            ),
            "labels": labels[chosen],
        }
        if cell_logits is not None:
            self.forward_ret_dict["cell_logits"] = cell_logits.permute(0, 2, 3, 1).flatten(0, 2)
            self.forward_ret_dict["cell_labels"] = cell_majority(
                cells, labels, self.num_class, len(self.forward_ret_dict["cell_logits"])
            )
        return batch_dict

    def point_features(self, points: Tensor, cells: Tensor, shape: torch.Size) -> Tensor:
        """(N, 2 columns + 2): columns, columns minus their mean over the cell, offset in the cell."""
        place = in_cells(points, self.limits, shape)
        offset = torch.stack([value - value.floor() - 0.5 for value in place], dim=1)
        columns = points[:, 1:]
        return torch.cat([columns, columns - cell_means(columns, cells), offset], dim=1)

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
        parts = {}
        parts["segment_loss_ce"], parts["segment_loss_lovasz"] = self._losses(
            state["logits"], state["labels"]
        )
        if "cell_labels" in state:
            both = self._losses(state["cell_logits"], state["cell_labels"])
            parts["segment_loss_cell"] = (both[0] + both[1]) * weights.cell_weight
        loss = torch.stack(list(parts.values())).sum()
        figures = torch.stack([*parts.values(), loss]).tolist()
        tb_dict = {} if tb_dict is None else tb_dict
        tb_dict.update(zip([*parts, "segment_loss"], figures, strict=True))
        return loss, tb_dict

    def add_predictions(self, batch_dict: dict[str, Any], pred_dicts: list[dict[str, Any]]) -> None:
        """Add to the dict of each sample, in eval mode:

        * ``pred_point_labels``: (N_i,) int64, in the order of the sample's rows in ``points``
        * ``pred_bev_labels``: (H, W) int64, with CELL_LABELS
        """
        labels, sample = batch_dict["point_logits"].argmax(dim=1), batch_dict["points"][:, 0].long()
        for number, prediction in enumerate(pred_dicts):
            prediction["pred_point_labels"] = labels[sample == number]
            if "cell_logits" in batch_dict:
                prediction["pred_bev_labels"] = batch_dict["cell_logits"][number].argmax(dim=0)

    def _losses(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted cross-entropy and Lovász-softmax of the labelled rows; zero without labelled rows."""
        counted, weights = labels != IGNORE, self.settings.loss_config
        logits, labels = logits[counted].float(), labels[counted]
        entropy = F.cross_entropy(logits, labels, self.class_weights, reduction="sum")
        total = self.class_weights[labels].sum().clamp(min=1e-6)
        jaccard = lovasz_softmax(logits.softmax(dim=1), labels) if weights.lovasz_weight else logits.sum() * 0
        return entropy / total * weights.ce_weight, jaccard * weights.lovasz_weight

    def _subsample(self, count: int, device: torch.device) -> Tensor:
        """Indices of at most MAX_POINTS of ``count`` points, evenly spaced."""
        most = min(self.settings.max_points or count, count)
        return torch.arange(most, device=device) * count // max(most, 1)

    def _targets(self, batch_dict: dict[str, Any]) -> Tensor:
        """(N,) labels, 255 in unlabelled frames; raises DataError if they are invalid or all ignored."""
        points, frames = batch_dict["points"], labelled_frames(batch_dict, "point_labels", WHERE)
        if "point_labels" not in batch_dict:
            return torch.full((len(points),), IGNORE, device=points.device)
        labels = batch_dict["point_labels"].long()
        if labels.shape != points.shape[:1]:
            raise DataError(
                f"{WHERE} needs one label per point; the batch has {len(points)} points and point_labels of "
                f"shape {tuple(labels.shape)}"
            )
        if frames is not None:
            labels = torch.where(frames[points[:, 0].long()], labels, IGNORE)
        wrong = (labels != IGNORE) & ((labels < 0) | (labels >= self.num_class))
        counts = torch.stack([wrong.sum(), (labels != IGNORE).sum()]).tolist()
        if counts[0]:
            found = torch.unique(labels[wrong])[:8].tolist()
            inside = points[wrong, 0].long().bincount(minlength=int(batch_dict["batch_size"])) > 0
            raise DataError(
                f"point_labels must be 0..{self.num_class - 1} or {IGNORE} (ignore); got {found} in the "
                f"frames {frame_names(batch_dict, inside)}: map them to the classes of {WHERE}"
            )
        if counts[1] == 0 and len(points) and (frames is None or bool(frames.any())):
            raise DataError(
                f"{WHERE} needs labelled points, but all point_labels are {IGNORE} (ignore) in the frames "
                f"{frame_names(batch_dict, frames)}. Remove these labels, or remove the frames."
            )
        return labels

    def __getstate__(self) -> dict[str, Any]:
        # outputs belong to the last batch, and non-leaf tensors can be neither copied nor pickled
        return {**self.__dict__, "forward_ret_dict": {}}


@torch.no_grad()
def cell_means(columns: Tensor, cells: Tensor) -> Tensor:
    """(N, C): mean of ``columns`` (N, C) over all points in the cell of each point.

    Sums are in fixed point with 1/65536 resolution, so that the result does not depend on the order of
    summation and is deterministic on a GPU too.
    """
    if len(cells) == 0:
        return columns
    count = int(cells.max()) + 1
    whole = (columns.double() * 65536).round().long()
    total = whole.new_zeros(count, columns.shape[1]).index_add_(0, cells, whole)
    points = torch.bincount(cells, minlength=count)
    return (total / (65536.0 * points.clamp(min=1).unsqueeze(1)))[cells].to(columns.dtype)


def _number_of_classes(settings: SegmentHeadSettings, context: BuildContext) -> int:
    names = context.semantic_class_names
    if settings.num_class is None and not names:
        raise ConfigError(
            f"{WHERE}: the data set has no semantic classes. Add point_labels (docs/labels.md: "
            "GET_ITEM_LIST, SEMANTIC.CLASSES), or set NUM_CLASS if the head is not trained."
        )
    number = settings.num_class or len(names)
    if names and number != len(names):
        raise ConfigError(
            f"{WHERE}: NUM_CLASS must be the number of semantic classes of the data set, {len(names)} "
            f"({', '.join(names)}); got {number}"
        )
    if len(settings.loss_config.class_weights) not in (0, number):
        raise ConfigError(
            f"{WHERE}: LOSS_CONFIG.CLASS_WEIGHTS must have {number} entries, one per class, or none; got "
            f"{len(settings.loss_config.class_weights)}"
        )
    return number
