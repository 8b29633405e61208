"""The scores as a table and as a dict."""

from __future__ import annotations

import numpy as np

from pcdet_freeze.evaluation.range_ap.rules import DISTANCES
from pcdet_freeze.evaluation.range_ap.scoring import RangeScores


def as_text(scores: RangeScores) -> str:
    """A row for each class, with its minimum overlap, and one for their mean; a column for each distance."""
    names = [name for name, _, _ in DISTANCES]
    rows = [
        [f"{kind.title}@{kind.min_overlap:.2f}", *_cells(scores, c)]
        for c, kind in enumerate(scores.rules.classes)
    ]
    rows.append(["mean", *(f"{value:.2f}" for value in scores.average.mean(axis=0))])
    table = [["class@IoU, AP (labels)", *names], *rows]
    wide = max(len(row[0]) for row in table)
    lines = [f"{row[0]:<{wide}}" + "".join(f"{cell:>16}" for cell in row[1:]) for row in table]
    return "\n".join([scores.rules.title, *lines, scores.rules.note])


def _cells(scores: RangeScores, c: int) -> list[str]:
    """AP and number of labels by distance; a dash where no label counts."""
    pairs = zip(scores.average[c], scores.labels[c], strict=True)
    return [f"{value:.2f} ({labels})" if labels else "-" for value, labels in pairs]


def as_dict(scores: RangeScores) -> dict[str, float]:
    """Percent; distances without a label are left out: ``AP_Vehicle/0-30m``, ``AP_mean/overall``."""
    values, rules = {}, scores.rules
    for c, kind in enumerate(rules.classes):
        for d, (name, _, _) in enumerate(DISTANCES):
            if scores.labels[c, d]:
                values[f"{rules.prefix}{kind.title}/{name}"] = float(scores.average[c, d])
    for d, (name, _, _) in enumerate(DISTANCES):
        values[f"{rules.prefix}mean/{name}"] = float(np.mean(scores.average[:, d]))
    return values
