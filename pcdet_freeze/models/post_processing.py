"""Post-processing of raw boxes and scores: score threshold, NMS, recall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from torch import Tensor

from pcdet_freeze.ops.iou import boxes_iou3d
from pcdet_freeze.ops.nms import nms, nms_normal
from pcdet_freeze.utils.rules import Count, Share, one_of, only
from pcdet_freeze.utils.sections import Section

NMS_TYPES = {"nms_gpu": nms, "nms_normal_gpu": nms_normal}


@dataclass(frozen=True)
class NMSSettings(Section):
    """``NMS_CONFIG``; the names of the types are OpenPCDet's, they work on any device."""

    nms_type: Annotated[str, one_of(NMS_TYPES)]
    nms_thresh: Share
    """BEV IoU above which the lower score goes"""
    nms_pre_maxsize: Count
    nms_post_maxsize: Count
    multi_classes_nms: bool = False
    """NMS for each class separately"""


@dataclass(frozen=True)
class PostProcessingSettings(Section):
    """``MODEL.POST_PROCESSING``."""

    nms_config: NMSSettings
    score_thresh: Share
    recall_thresh_list: tuple[Share, ...] = ()
    """3D IoU at which recall is counted"""
    output_raw_score: bool = False
    """return logits as scores"""
    eval_metric: str = "kitti"
    """read by the evaluation"""
    multi_classes_nms: bool = False
    """no effect, as in OpenPCDet, which reads the key of NMS_CONFIG only; the two must agree"""

    def faults(self) -> Iterator[str]:
        """A key that has no effect."""
        if self.multi_classes_nms and not self.nms_config.multi_classes_nms:
            yield "MULTI_CLASSES_NMS: True must be inside NMS_CONFIG"


@dataclass(frozen=True)
class RecallSettings(Section):
    """``MODEL.POST_PROCESSING`` of a detector whose head selects its boxes itself."""

    recall_thresh_list: tuple[Share, ...] = ()
    """3D IoU at which recall is counted"""
    output_raw_score: Annotated[bool, only(False, "the head selects its boxes itself")] = False
    """not implemented: heads give probabilities"""
    eval_metric: str = "kitti"
    """read by the evaluation"""


def class_agnostic_nms(
    boxes: Tensor, scores: Tensor, settings: NMSSettings, score_thresh: float
) -> tuple[Tensor, Tensor]:
    """NMS over all classes at once.

    Args:
        boxes: (N, 7 + C) [x, y, z, dx, dy, dz, heading, ...].
        scores: (N,).

    Returns:
        Indices (K,) int64 of the kept boxes, in descending order of score, and their scores (K,).
    """
    candidates = (scores >= score_thresh).nonzero()[:, 0]
    if len(candidates) == 0:
        return candidates, scores[candidates]
    kept = NMS_TYPES[settings.nms_type](
        boxes[candidates, :7], scores[candidates], settings.nms_thresh, pre_maxsize=settings.nms_pre_maxsize
    )
    chosen = candidates[kept[: settings.nms_post_maxsize]]
    return chosen, scores[chosen]


def multi_classes_nms(
    boxes: Tensor, scores: Tensor, settings: NMSSettings, score_thresh: float
) -> tuple[Tensor, Tensor, Tensor]:
    """NMS for each class separately, one class after another.

    Args:
        boxes: (N, 7 + C).
        scores: (N, classes).

    Returns:
        Indices (K,), scores (K,) and labels (K,), from 1, of the kept boxes.
    """
    found = [class_agnostic_nms(boxes, scores[:, k], settings, score_thresh) for k in range(scores.shape[1])]
    labels = [index.new_full((len(index),), k + 1) for k, (index, _) in enumerate(found)]
    chosen, kept_scores = (torch.cat(parts) for parts in zip(*found, strict=True))
    return chosen, kept_scores, torch.cat(labels)


@torch.no_grad()
def post_process(
    batch_dict: dict[str, Any], settings: PostProcessingSettings
) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
    """Detections of a batch.

    Reads:
        batch_cls_preds: (B, A, classes) logits, or probabilities if cls_preds_normalized is True; or a list
        of
            such tensors for consecutive groups of the A anchors
        multihead_label_mapping (with a list): labels, from 1, of the columns of each group, (classes,)
        batch_box_preds: (B, A, 7 + C)
        gt_boxes (optional): (B, G, 8); recall is counted if it is given
        rois (optional): (B, R, 7), proposals, whose recall is counted too

    Returns:
        One dict per sample: pred_boxes (K, 7 + C), pred_scores (K,), pred_labels (K,) from 1; and recall
        counts: ``gt``, and ``roi_T`` and ``rcnn_T`` for each threshold T.
    """
    detections: list[dict[str, Tensor]] = []
    recall: dict[str, float] = {}
    for sample in range(int(batch_dict["batch_size"])):
        detections.append(_select(_anchor_groups(batch_dict, sample), settings))
        if "gt_boxes" in batch_dict:
            rois = batch_dict["rois"][sample] if "rois" in batch_dict else None
            boxes = detections[-1]["pred_boxes"]
            _count_recall(recall, settings.recall_thresh_list, boxes, batch_dict["gt_boxes"][sample], rois)
    return detections, recall


@torch.no_grad()
def count_detections(
    batch_dict: dict[str, Any], settings: RecallSettings
) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
    """Detections of a head that runs NMS itself, with the recall counts of ``post_process``.

    Reads:
        final_box_dicts: one dict per sample: pred_boxes (K, 7 + C), pred_scores (K,), pred_labels (K,) from 1
        gt_boxes (optional): (B, G, 8 + C); recall is counted if it is given
    """
    detections: list[dict[str, Tensor]] = batch_dict["final_box_dicts"]
    recall: dict[str, float] = {}
    for found, gt_boxes in zip(detections, batch_dict.get("gt_boxes", ()), strict=False):
        _count_recall(recall, settings.recall_thresh_list, found["pred_boxes"], gt_boxes, None)
    return detections, recall


@dataclass(frozen=True)
class _AnchorGroup:
    """Anchors of one sample with the same class columns."""

    boxes: Tensor
    """(N, 7 + C)"""
    raw: Tensor
    """(N, classes) raw output of the head"""
    scores: Tensor
    """(N, classes) probabilities"""
    labels: Tensor
    """(classes,) from 1"""


def _anchor_groups(batch_dict: dict[str, Any], sample: int) -> list[_AnchorGroup]:
    given = batch_dict["batch_cls_preds"]
    if isinstance(given, Tensor):
        raws, labels = [given], [torch.arange(1, given.shape[-1] + 1, device=given.device)]
    else:
        raws, labels = given, batch_dict["multihead_label_mapping"]
    normalized = batch_dict.get("cls_preds_normalized", False)
    boxes = batch_dict["batch_box_preds"][sample].split([raw.shape[1] for raw in raws])
    return [
        _AnchorGroup(box, raw[sample], raw[sample] if normalized else raw[sample].sigmoid(), label)
        for box, raw, label in zip(boxes, raws, labels, strict=True)
    ]


def _select(groups: list[_AnchorGroup], settings: PostProcessingSettings) -> dict[str, Tensor]:
    nms_config = settings.nms_config
    if nms_config.multi_classes_nms:
        parts = [_each_class(group, settings) for group in groups]
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    groups = [_with_candidates(group, settings.score_thresh) for group in groups]
    boxes = _joined([group.boxes for group in groups])
    best, raw, labels = map(_joined, zip(*(_best(group) for group in groups), strict=True))
    chosen, kept = class_agnostic_nms(boxes, best, nms_config, settings.score_thresh)
    if settings.output_raw_score:
        kept = raw[chosen]
    return {"pred_boxes": boxes[chosen], "pred_scores": kept, "pred_labels": labels[chosen]}


def _with_candidates(group: _AnchorGroup, score_thresh: float) -> _AnchorGroup:
    """The anchors of a group of which some score reaches the threshold, in their order.

    On a CPU the maximum over the classes of all anchors takes most of the time of a frame. On other devices
    it does not, and counting the candidates would wait for the device.
    """
    if not group.scores.is_cpu:
        return group
    reached = (group.scores.reshape(-1) >= score_thresh).nonzero()[:, 0]
    rows = (reached // group.scores.shape[1]).unique_consecutive()
    return _AnchorGroup(group.boxes[rows], group.raw[rows], group.scores[rows], group.labels)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def _best(group: _AnchorGroup) -> tuple[Tensor, Tensor, Tensor]:
    """Score, raw score and label, (N,) each, of the best class of each anchor."""
    best, winner = group.scores.max(dim=-1)
    return best, group.raw.max(dim=-1).values, group.labels[winner]


def _each_class(group: _AnchorGroup, settings: PostProcessingSettings) -> dict[str, Tensor]:
    chosen, kept, column = multi_classes_nms(
        group.boxes, group.scores, settings.nms_config, settings.score_thresh
    )
    if settings.output_raw_score:
        kept = group.raw[chosen].max(dim=-1).values
    return {"pred_boxes": group.boxes[chosen], "pred_scores": kept, "pred_labels": group.labels[column - 1]}


def _count_recall(
    recall: dict[str, float],
    thresholds: tuple[float, ...],
    boxes: Tensor,
    gt_boxes: Tensor,
    rois: Tensor | None,
) -> None:
    """Add the counts of one sample to ``recall``: ground-truth boxes, and those that are found."""
    real = gt_boxes[gt_boxes[:, -1] > 0][:, :7]
    recall["gt"] = recall.get("gt", 0) + len(real)
    for name, found in (("roi", rois), ("rcnn", boxes)):
        covered = None
        if found is not None and len(found) and len(real):
            covered = boxes_iou3d(found[:, :7], real).max(dim=0).values
        for thresh in thresholds:
            hits = 0 if covered is None else int((covered > thresh).sum())
            recall[f"{name}_{thresh}"] = recall.get(f"{name}_{thresh}", 0) + hits
