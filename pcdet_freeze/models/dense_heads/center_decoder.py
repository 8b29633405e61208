"""Decoding of the output maps of CenterHead (CenterPoint, arXiv:2006.11275, section 4)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pcdet_freeze.models.dense_heads.center_head_settings import CenterPostProcessing
from pcdet_freeze.models.dense_heads.center_targets import MapGeometry
from pcdet_freeze.models.post_processing import class_agnostic_nms, nms_on_device
from pcdet_freeze.ops.batch_nms import by_score
from pcdet_freeze.utils.devices import constant, is_accelerator
from pcdet_freeze.utils.host_copies import to_host

Detections = dict[str, Tensor]


def decode(maps: Mapping[str, Tensor], geometry: MapGeometry, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Decode the ``count`` cells of a head with the highest scores.

    Args:
        maps: raw outputs of the branches of the head, (B, columns, H, W); ``hm`` are logits.

    Returns:
        boxes (B, K, 7 or 9) [x, y, z, dx, dy, dz, heading, (vx, vy)], metres and radians; scores (B, K),
        descending; classes (B, K) of this head, from 0.
    """
    logits = maps["hm"].float()
    cells = logits.shape[2] * logits.shape[3]
    best, index = logits.flatten(1).topk(min(count, logits[0].numel()))
    cell = index % cells
    at = {name: _gather(values.float(), cell) for name, values in maps.items() if name != "hm"}
    column, row = cell % geometry.width, cell // geometry.width
    place = torch.stack([column, row], dim=-1) + at["center"]
    low, size = (constant(numbers, place.device) for numbers in (geometry.lower, geometry.cell))
    heading = torch.atan2(at["rot"][..., 1:2], at["rot"][..., 0:1])
    parts = [place * geometry.stride * size + low, at["center_z"], at["dim"].exp(), heading]
    boxes = torch.cat([*parts, at["vel"]] if "vel" in at else parts, dim=-1)
    return boxes, best.sigmoid(), index // cells


def _gather(values: Tensor, cell: Tensor) -> Tensor:
    """Values at cells: (B, C, H, W), (B, K) -> (B, K, C)."""
    flat = values.flatten(2)
    return flat.gather(2, cell.unsqueeze(1).expand(-1, flat.shape[1], -1)).transpose(1, 2)


def is_valid(boxes: Tensor, scores: Tensor, settings: CenterPostProcessing) -> Tensor:
    """(..., N) bool: the centre is inside the limits (inclusive) and the score is above the threshold."""
    limits = constant(settings.post_center_limit_range, boxes.device, boxes.dtype)
    inside = (boxes[..., :3] >= limits[:3]) & (boxes[..., :3] <= limits[3:])
    return inside.all(dim=-1) & (scores > settings.score_thresh)


def _suppress(boxes: Tensor, scores: Tensor, settings: CenterPostProcessing) -> tuple[Tensor, Tensor, Tensor]:
    """Valid boxes (B, K) bool, those that NMS keeps (B, K), and whether that is right (B,).

    On a CPU the boxes are suppressed later, sample by sample.
    """
    seen = is_valid(boxes, scores, settings)
    if not is_accelerator(boxes):
        return seen, seen, seen.new_zeros(len(seen))
    # scores descend, so the first ones are those that NMS looks at
    counts = seen & (seen.cumsum(1) <= settings.nms_config.nms_pre_maxsize)
    return seen, *nms_on_device(boxes, scores, counts, settings.nms_config)


def detect(
    heads: Sequence[Mapping[str, Tensor]],
    classes: Sequence[Sequence[int]],
    geometry: MapGeometry,
    settings: CenterPostProcessing,
) -> list[Detections]:
    """Detections of each sample: boxes of all heads after NMS for each head.

    Args:
        heads: raw outputs of each head; see ``decode``.
        classes: labels (from 1) of the classes of each head.

    Returns:
        One dict per sample, on the CPU: pred_boxes (K, 7 or 9), pred_scores (K,), pred_labels (K,) int64
        from 1.
    """
    parts: list[list[tuple[Tensor, Tensor, Tensor]]] = [[] for _ in heads[0]["hm"]]
    decoded = [decode(maps, geometry, settings.max_obj_per_sample) for maps in heads]
    # from a device in one copy
    found = to_host([(*each, *_suppress(each[0], each[1], settings)) for each in decoded])
    for own, numbers in zip(found, classes, strict=True):
        labels_of = torch.tensor(numbers)
        for sample, (boxes, scores, which, seen, kept, settled) in enumerate(zip(*own, strict=True)):
            if settled:
                chosen = by_score(kept, scores)[: settings.nms_config.nms_post_maxsize]
            else:
                place = seen.nonzero()[:, 0]
                among = class_agnostic_nms(
                    boxes[seen], scores[seen], settings.nms_config, settings.score_thresh
                )
                chosen = place[among[0]]
            parts[sample].append((boxes[chosen], scores[chosen], labels_of[which[chosen]]))
    names = ("pred_boxes", "pred_scores", "pred_labels")
    return [
        dict(zip(names, (torch.cat(column) for column in zip(*sample, strict=True)), strict=True))
        for sample in parts
    ]
