"""Post-processing of raw boxes and scores: score threshold, NMS, recall."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

import torch
from torch import Tensor

from pcdet_freeze.models.head_outputs import Group, HeadKeys, groups_of
from pcdet_freeze.ops.batch_nms import Suppressed, by_score, nms_batch
from pcdet_freeze.ops.iou import boxes_iou3d
from pcdet_freeze.ops.nms import nms, nms_normal
from pcdet_freeze.utils.devices import host_copy, is_accelerator
from pcdet_freeze.utils.host_copies import to_host
from pcdet_freeze.utils.settings.rules import Count, Share, one_of, only
from pcdet_freeze.utils.settings.sections import Section

CANDIDATES = "box_candidates"
"""key of a batch whose candidates are on the host already"""
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


def nms_on_device(boxes: Tensor, scores: Tensor, counts: Tensor, settings: NMSSettings) -> Suppressed:
    """NMS of a batch on its device: (B, N, 7 + C), (B, N), and the boxes that take part, (B, N) bool."""
    is_normal = settings.nms_type == "nms_normal_gpu"
    return nms_batch(boxes[..., :7], scores, counts, settings.nms_thresh, axis_aligned=is_normal)


@torch.no_grad()
def post_process(
    batch_dict: dict[str, Any], settings: PostProcessingSettings, heads: Sequence[HeadKeys] = (HeadKeys(),)
) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
    """Detections of a batch; those of several ``heads`` are suppressed among each other.

    Reads (with the suffix of each head):
        batch_cls_preds: (B, A, classes) logits, or probabilities if cls_preds_normalized is True; or a list
        of
            such tensors for consecutive groups of the A anchors
        multihead_label_mapping (with a list): labels, from 1, of the columns of each group, (classes,)
        batch_box_preds: (B, A, 7 + C)
        final_box_dicts: in place of the first three, of a head that selects its boxes itself: those boxes
        gt_boxes (optional): (B, G, 8); recall is counted if it is given
        rois (optional): (B, R, 7), proposals, whose recall is counted too
        box_candidates (optional): in place of the outputs of heads, see ``box_candidates``

    Returns:
        One dict per sample: pred_boxes (K, 7 + C), pred_scores (K,), pred_labels (K,) from 1; and recall
        counts: ``gt``, and ``roi_T`` and ``rcnn_T`` for each threshold T.
    """
    detections: list[dict[str, Tensor]] = []
    recall: dict[str, float] = {}
    if CANDIDATES not in batch_dict:
        batch_dict = {**batch_dict, **to_host(box_candidates(batch_dict, settings, heads))}
    for sample in range(int(batch_dict["batch_size"])):
        detections.append(_select([each.of(sample) for each in batch_dict[CANDIDATES]], settings))
        if "gt_boxes" in batch_dict:
            rois = batch_dict["rois"][sample] if "rois" in batch_dict else None
            boxes, gt_boxes = detections[-1]["pred_boxes"], host_copy(batch_dict["gt_boxes"])[sample]
            _count_recall(recall, settings.recall_thresh_list, boxes, gt_boxes, rois)
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
    labels = host_copy(batch_dict["gt_boxes"]) if "gt_boxes" in batch_dict else ()
    for found, gt_boxes in zip(detections, labels, strict=False):
        _count_recall(recall, settings.recall_thresh_list, found["pred_boxes"], gt_boxes, None)
    return detections, recall


class BoxCandidates(NamedTuple):
    """Boxes of all samples that are suppressed among each other: those of all classes, or of one."""

    boxes: Tensor
    """(B, N, 7 + C)"""
    scores: Tensor
    """(B, N)"""
    raw: Tensor
    """(B, N) raw output of the head"""
    labels: Tensor
    """(B, N) from 1"""
    kept: Tensor | None = None
    """(B, N) bool, those that NMS on the device keeps"""
    settled: Tensor | None = None
    """(B,) bool, whether ``kept`` is right; where it is not, the host suppresses the boxes"""

    def of(self, sample: int) -> BoxCandidates:
        """Those of one sample, without the first dimension."""
        return BoxCandidates(*(None if part is None else part[sample] for part in self))  # type: ignore[arg-type]

    def best(self, count: int) -> BoxCandidates:
        """The ``count`` boxes of each sample with the highest scores, in their order."""
        if self.scores.shape[1] <= count:
            return self
        ranked = self.scores.nan_to_num(-torch.inf).sort(dim=1, descending=True, stable=True).indices
        kept = ranked[:, :count].sort(dim=1).values
        rows = kept.unsqueeze(2).expand(-1, -1, self.boxes.shape[2])
        others = (part.gather(1, kept) for part in (self.scores, self.raw, self.labels))
        return BoxCandidates(self.boxes.gather(1, rows), *others)

    def suppressed(self, settings: PostProcessingSettings) -> BoxCandidates:
        """The same with NMS on the device."""
        counts = self.scores >= settings.score_thresh
        return self._replace(**nms_on_device(self.boxes, self.scores, counts, settings.nms_config)._asdict())


def box_candidates(
    batch_dict: dict[str, Any], settings: PostProcessingSettings, heads: Sequence[HeadKeys] = (HeadKeys(),)
) -> dict[str, Any]:
    """What ``post_process`` needs from the device: ``candidates``, and ``rois`` if the batch has them.

    On an accelerator, only the boxes that NMS looks at (NMS_PRE_MAXSIZE), with those that it keeps: they are
    then copied to the host together.
    """
    groups = groups_of(batch_dict, heads)
    on_accelerator = is_accelerator(groups[0].boxes)
    if settings.nms_config.multi_classes_nms:
        found = [
            BoxCandidates(boxes, scores[..., k], raw.amax(dim=-1), labels[k].expand_as(scores[..., k]))
            for boxes, raw, scores, labels in groups
            for k in range(scores.shape[-1])
        ]
    else:
        if not on_accelerator:
            rows = [_reaching(group.scores, settings.score_thresh) for group in groups]
            groups = [
                Group(boxes[:, at], raw[:, at], scores[:, at], labels)
                for at, (boxes, raw, scores, labels) in zip(rows, groups, strict=True)
            ]
        best = [(group.scores.max(dim=-1), group) for group in groups]
        found = [
            BoxCandidates(
                torch.cat([group.boxes for group in groups], dim=1),
                torch.cat([top.values for top, _ in best], dim=1),
                torch.cat([group.raw.amax(dim=-1) for group in groups], dim=1),
                torch.cat([group.labels[top.indices] for top, group in best], dim=1),
            )
        ]
    if on_accelerator:
        most = settings.nms_config.nms_pre_maxsize
        found = [each.best(most).suppressed(settings) for each in found]
    rois = {"rois": batch_dict["rois"]} if "rois" in batch_dict else {}
    return {CANDIDATES: found, **rois}


def _reaching(scores: Tensor, score_thresh: float) -> Tensor:
    """The anchors of which some score of (B, n, classes) reaches the threshold in some sample, in order.

    On a CPU the maximum over the classes of all anchors takes most of the time of a frame. On other devices
    it does not, and counting these anchors would wait for the device.
    """
    reached = (scores.reshape(-1) >= score_thresh).nonzero()[:, 0]
    rows = (reached // scores.shape[2]) % scores.shape[1]
    return rows.unique_consecutive() if len(scores) == 1 else rows.unique()


def _select(groups: list[BoxCandidates], settings: PostProcessingSettings) -> dict[str, Tensor]:
    """Detections of a sample: NMS of each of ``groups``."""
    parts = []
    for group in groups:
        nms_config = settings.nms_config
        if group.kept is not None and group.settled:
            chosen = by_score(group.kept, group.scores)[: nms_config.nms_post_maxsize]
        else:
            chosen, _ = class_agnostic_nms(group.boxes, group.scores, nms_config, settings.score_thresh)
        scores = (group.raw if settings.output_raw_score else group.scores)[chosen]
        parts.append((group.boxes[chosen], scores, group.labels[chosen]))
    names = ("pred_boxes", "pred_scores", "pred_labels")
    return dict(zip(names, (torch.cat(column) for column in zip(*parts, strict=True)), strict=True))


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
