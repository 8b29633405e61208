"""Does the data have labels for every task that is to be trained?"""

from __future__ import annotations

from typing import Any

from torch import nn

from pcdet_freeze.datasets.frames import LABEL_KEYS
from pcdet_freeze.errors import DataError
from pcdet_freeze.freeze.dataflow import stages, training_steps


def require_labels(model: nn.Module, dataset: Any) -> None:
    """Raise one DataError for all heads that give a loss but whose label no frame of ``dataset`` has.

    A head's labels are those of LABEL_KEYS among its ``reads_train``; what the data set can give is its
    ``labels``. Frozen heads need none. Either of the two may be undeclared: then nothing is asked.
    """
    given = getattr(dataset, "labels", None)
    if given is None:
        return
    steps = training_steps(model)
    lacking = {
        stage.name: missing
        for stage in stages(model)
        if stage.has_loss
        and steps[stage.name].loss
        and (missing := [key for key in LABEL_KEYS if key in stage.reads_train and key not in given])
    }
    if lacking:
        needs = "; ".join(f"{head} learns from {', '.join(keys)}" for head, keys in lacking.items())
        raise DataError(
            f"A task needs labels in some frame, but {type(dataset).__name__} has only "
            f"{', '.join(given) or 'none'}: {needs}. Add the labels (docs/labels.md), or name the head in "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK"
        )
