"""Does the data have labels for every task that is to be trained?"""

from __future__ import annotations

from typing import Any

from torch import nn

from pcdet_freeze.errors import DataError
from pcdet_freeze.freezing.module_graph import stages, training_steps


def require_labels(model: nn.Module, dataset: Any) -> None:
    """Raise one DataError for all heads that give a loss but whose label no frame of ``dataset`` has.

    A head's labels are its ``reads_train``, less what modules write; what the data set can give is its
    ``labels``. Frozen heads need none. Either of the two may be undeclared: then nothing is asked.
    """
    given = getattr(dataset, "labels", None)
    if given is None:
        return
    steps, parts = training_steps(model), stages(model)
    there = {*given, *(key for part in parts for key in part.writes)}
    lacking = {
        part.name: missing
        for part in parts
        if part.has_loss and steps[part.name].loss and (missing := sorted(part.reads_train - there))
    }
    if lacking:
        needs = "; ".join(f"{head} learns from {', '.join(keys)}" for head, keys in lacking.items())
        raise DataError(
            f"A task needs labels in some frame, but {type(dataset).__name__} has only "
            f"{', '.join(given) or 'none'}: {needs}. Add the labels (docs/labels.md; those of a task of your "
            "own to the data set's `labels`), or name the head in MODEL.NOT_TRAIN_IN_MULTI_TASK"
        )
