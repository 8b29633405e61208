"""Recall over a data set, from the counts that a detector's post-processing returns for each batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping


def recall_summary(records: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """``{"recall/rcnn_0.3": 0.9, ...}``: found labels by all labels, in [0, 1]; 0 where there are none.

    Args:
        records: one ``recall_dict`` a batch: ``gt``, the number of labels, and under names such as
            ``roi_0.3`` and ``rcnn_0.7`` how many of them were found at that overlap. Empty ones add nothing.
    """
    total: Counter[str] = Counter()
    for record in records:
        # float(): counts may come as 0-d tensors
        total.update({key: float(count) for key, count in record.items()})
    labels = max(total.pop("gt", 0), 1)
    return {f"recall/{key}": count / labels for key, count in total.items()}
