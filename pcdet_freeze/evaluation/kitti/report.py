"""The scores as text and as a dict, in the format of OpenPCDet."""

from __future__ import annotations

from pcdet_freeze.evaluation.kitti.rules import DIFFICULTIES
from pcdet_freeze.evaluation.kitti.scoring import OVERLAP_SETS, KittiScores, best_average

# metric -> label of its line in the text, number of decimals
LINES = {"image": ("bbox AP", 4), "bev": ("bev  AP", 4), "3d": ("3d   AP", 4), "aos": ("aos  AP", 2)}
RECALL_NAMES = {11: "AP", 40: "AP_R40"}
MODERATE = 1
"""number of the difficulty in DIFFICULTIES"""


def as_text(scores: KittiScores) -> str:
    """A block for each class, overlap set and number of recall points: easy, moderate, hard per metric."""
    blocks = []
    for c in range(len(scores.classes)):
        for overlap_set in range(OVERLAP_SETS):
            for recall_points in RECALL_NAMES:
                blocks.append(_block(scores, c, overlap_set, recall_points))
    return "".join(blocks)


def _block(scores: KittiScores, c: int, overlap_set: int, recall_points: int) -> str:
    kitti_class = scores.classes[c]
    overlaps = ", ".join(f"{kitti_class.min_overlap(m)[overlap_set]:.2f}" for m in ("image", "bev", "3d"))
    lines = [f"{kitti_class.name} {RECALL_NAMES[recall_points]}@{overlaps}:"]
    for metric, (head, decimals) in LINES.items():
        if metric in scores.curves:
            values = scores.average(metric, recall_points)[c, :, overlap_set]
            lines.append(f"{head}:" + ", ".join(f"{value:.{decimals}f}" for value in values))
    return "\n".join(lines) + "\n"


def notes(scores: KittiScores) -> str:
    """A line about each class that has labels, but too few for an AP R40 of 100."""
    lines = []
    for kitti_class, labels in zip(scores.classes, scores.counted[:, MODERATE], strict=True):
        if labels and (best := best_average(int(labels))) < 100:
            lines.append(
                f"{kitti_class.name}: {labels} labels count (moderate). A precision curve has at most as "
                f"many points as labels: AP_R40 is at most {best:.2f}, even for the ground truth itself.\n"
            )
    return "".join(lines)


def as_dict(scores: KittiScores) -> dict[str, float]:
    """Percent: ``Car_3d/moderate_R40`` at the strict overlap, ``Car_3d_0.50/moderate_R40`` at each."""
    values: dict[str, float] = {}
    for metric in scores.curves:
        for recall_points in RECALL_NAMES:
            average = scores.average(metric, recall_points)
            for c, kitti_class in enumerate(scores.classes):
                for d, difficulty in enumerate(DIFFICULTIES):
                    tail = f"/{difficulty.name}_R{recall_points}"
                    if recall_points == 40:
                        values[f"{kitti_class.name}_{metric}{tail}"] = float(average[c, d, 0])
                    for o, overlap in enumerate(kitti_class.min_overlap(metric)):
                        values[f"{kitti_class.name}_{metric}_{overlap:.2f}{tail}"] = float(average[c, d, o])
    return values
