"""Rotated NMS of a batch on any device, without a wait of the host.

The result is that of :func:`pcdet_freeze.ops.nms.nms`, box by box: a box is kept unless its IoU with a kept
box of a higher score is above the threshold. Lengths that depend on data are bounded instead: the exact
intersection is computed for the first ``PAIRS`` near pairs a box, and the rule is applied ``ROUNDS`` times to
all boxes at once, until nothing changes. Where a bound is too small, the sample is not *settled*, and the
caller suppresses its boxes on the host.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pcdet_freeze.ops._rotated_overlap_torch import near_torch, overlap_torch, prepare_torch
from pcdet_freeze.ops.iou import BEV_COLUMNS

PAIRS = 64
"""near pairs for each box; boxes of 4 m that cover an area twice have about 10"""
ROUNDS = 16
"""a box is decided one round after those that may suppress it"""


class Suppressed(NamedTuple):
    """Result of NMS for a batch, on its device."""

    kept: Tensor
    """(B, N) bool"""
    settled: Tensor
    """(B,) bool: whether ``kept`` is right for the sample"""


def nms_batch(
    boxes: Tensor,
    scores: Tensor,
    counts: Tensor,
    thresh: float,
    *,
    axis_aligned: bool = False,
    pairs: int = PAIRS,
    rounds: int = ROUNDS,
) -> Suppressed:
    """NMS of each sample. Equal scores: the lower index first.

    Args:
        boxes: (B, N, 7) [x, y, z, dx, dy, dz, heading], metres and radians; z and dz are ignored.
        scores: (B, N).
        counts: (B, N) bool, boxes that take part; the others are not kept.
        thresh: BEV IoU above which the box with the lower score is removed.
        axis_aligned: take all headings as 0.
    """
    samples, number = scores.shape
    if number == 0:
        return Suppressed(counts.clone(), counts.new_ones(samples))
    order = scores.masked_fill(~counts, -torch.inf).sort(dim=1, descending=True, stable=True).indices
    # a list of columns as an index would be copied to the device, for which the host waits
    flat = torch.stack([boxes[..., column] for column in BEV_COLUMNS], dim=2).double()
    flat = flat.gather(1, order.unsqueeze(2).expand_as(flat))
    if axis_aligned:
        flat[..., 4] = 0
    rows, alive = prepare_torch(flat.view(-1, 5)), counts.gather(1, order)
    rows[:, 6] = torch.where(alive.view(-1), rows[:, 6], -torch.inf)  # near no other box
    listed = [_near_pairs(own, pairs) for own in rows.view(samples, number, 8)]
    begin = number * torch.arange(samples, device=rows.device).view(-1, 1)
    later, earlier = (torch.stack(each).add(begin).view(-1) for each in list(zip(*listed, strict=True))[:2])
    used, whole = torch.stack([each[2] for each in listed]).view(-1), torch.stack([e[3] for e in listed])
    above = used & _is_above(rows[later], rows[earlier], thresh)
    kept, stable = _suppress(alive.view(-1), later, earlier, above, rounds)
    stable = stable.view(samples, number).all(dim=1)
    return Suppressed(torch.zeros_like(alive).scatter(1, order, kept.view(samples, number)), whole & stable)


def _near_pairs(rows: Tensor, pairs: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The first pairs of prepared rectangles (N, 8) whose circles overlap.

    Returns:
        Later and earlier index (P,) int64, which of the P pairs exist (P,) bool, and whether these are all
        pairs, () bool.
    """
    number = len(rows)
    most = min(number * pairs, number * (number - 1) // 2)
    found = near_torch(rows, rows).tril(-1).view(-1).cumsum(0)
    wanted = torch.arange(1, most + 1, device=rows.device)
    place = torch.searchsorted(found, wanted).clamp(max=number * number - 1)
    count = found[-1]
    return torch.div(place, number, rounding_mode="floor"), place % number, wanted <= count, count <= most


def by_score(kept: Tensor, scores: Tensor) -> Tensor:
    """Indices (K,) int64 of the kept boxes of a sample, in descending order of score; (N,) bool, (N,)."""
    chosen = kept.nonzero()[:, 0]
    return chosen[scores[chosen].sort(descending=True, stable=True).indices]


def _is_above(a: Tensor, b: Tensor, thresh: float) -> Tensor:
    """(P,) bool: the IoU of prepared pairs is above ``thresh``; any value for pairs that do not overlap."""
    inter = overlap_torch(a, b)
    return inter / (a[:, 7] + b[:, 7] - inter) > thresh


def _suppress(
    alive: Tensor, later: Tensor, earlier: Tensor, above: Tensor, rounds: int
) -> tuple[Tensor, Tensor]:
    """Boxes (N,) bool without a kept box above them, and whether the last round left them as they were."""
    kept, before = alive, alive
    for _ in range(rounds):
        hits = torch.zeros_like(kept, dtype=torch.int32)
        hits.scatter_reduce_(0, later, (above & kept[earlier]).int(), "amax")
        kept, before = alive & (hits == 0), kept
    return kept, kept == before
