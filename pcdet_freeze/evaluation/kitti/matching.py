"""Matching of labels and detections, compiled because it runs about two thousand times per label.

The candidates of label i are the detections with sufficient overlap, ``candidate[first[i]:first[i + 1]]``.
They are always in the same frame, so the loop over labels does not have to distinguish frames. The caller
removes labels and detections that do not take part. ``ignored`` ones can be matched, but count neither as
true positive nor as miss.
"""

from __future__ import annotations

import numpy as np

from pcdet_freeze.evaluation.kitti.tables import Flags, Floats, Ints
from pcdet_freeze.ops.compiled import compiled
from pcdet_freeze.utils.signals.interrupts import uninterrupted

RECALL_POINTS = 41


@uninterrupted
@compiled
def true_positive_scores(
    first: Ints, candidate: Ints, label_ignored: Flags, ignored: Flags, score: Floats
) -> Floats:
    """(T,) scores of true positives if each label takes its unmatched candidate of highest score."""
    taken = np.zeros(len(score), np.bool_)
    found = np.empty(len(label_ignored))
    count = 0
    for label in range(len(label_ignored)):
        best = -1
        for pair in range(first[label], first[label + 1]):
            detection = candidate[pair]
            if not taken[detection] and (best < 0 or score[detection] > score[best]):
                best = detection
        if best < 0:
            continue
        taken[best] = True
        if not label_ignored[label] and not ignored[best]:
            found[count] = score[best]
            count += 1
    return found[:count]


@uninterrupted
@compiled
def recall_thresholds(scores: Floats, num_labels: int) -> Floats:
    """(at most 41,) scores at which recall is closest to 0, 1/40, 2/40, ...

    Args:
        scores: (T,) scores of true positives, descending.
        num_labels: number of labels that count.
    """
    kept = np.empty(len(scores))
    count = 0
    wanted = 0.0
    for i in range(len(scores)):
        recall, next_recall = (i + 1) / num_labels, (i + 2) / num_labels
        if i < len(scores) - 1 and next_recall - wanted < wanted - recall:
            continue  # the next score is closer; the last one has no next
        kept[count] = scores[i]
        count += 1
        wanted += 1 / (RECALL_POINTS - 1)
    return kept[:count]


@compiled
def _closest(
    candidates: Ints, overlap: Floats, ignored: Flags, score: Floats, taken: Flags, threshold: float
) -> int:
    """The unmatched candidate with the largest overlap, else the first ignored one; -1 if there is none."""
    best, best_overlap = -1, 0.0
    for pair in range(len(candidates)):
        detection = candidates[pair]
        if taken[detection] or score[detection] < threshold:
            continue
        if ignored[detection]:
            if best < 0:
                best = detection
        elif overlap[pair] > best_overlap:
            best, best_overlap = detection, overlap[pair]
    return best


@uninterrupted
@compiled
def count_at(
    thresholds: Floats,
    first: Ints,
    candidate: Ints,
    overlap: Floats,
    label_ignored: Flags,
    ignored: Flags,
    score: Floats,
    excused: Flags,
    label_alpha: Floats,
    alpha: Floats,
) -> tuple[Floats, Floats, Floats]:
    """True positives, false positives and summed orientation similarity at each of T score thresholds.

    Args:
        thresholds: (T,) detections with a lower score are discarded.
        first, candidate, overlap: (L + 1,), (P,), (P,) candidates of the labels, see above.
        label_ignored, label_alpha: (L,); ignored, score, alpha: (D,).
        excused: (D,) detections in a DontCare region, which are no false positives if unmatched.

    Returns:
        Three arrays (T,); similarity is (1 + cos(difference of alpha)) / 2 for each true positive.
    """
    true = np.zeros(len(thresholds))
    false = np.zeros(len(thresholds))
    similarity = np.zeros(len(thresholds))
    for t in range(len(thresholds)):
        taken = np.zeros(len(score), np.bool_)
        for label in range(len(label_ignored)):
            mine = slice(first[label], first[label + 1])
            best = _closest(candidate[mine], overlap[mine], ignored, score, taken, thresholds[t])
            if best < 0:
                continue
            taken[best] = True
            if not label_ignored[label] and not ignored[best]:
                true[t] += 1
                similarity[t] += (1 + np.cos(label_alpha[label] - alpha[best])) / 2
        for detection in range(len(score)):
            if not (score[detection] < thresholds[t] or taken[detection] or ignored[detection]):
                false[t] += not excused[detection]
    return true, false, similarity
