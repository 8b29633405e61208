"""The labels that a training needs, checked before its first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from pcdet_freeze.engine.checkpoint.head_classes import classes_of
from pcdet_freeze.errors import DataError
from pcdet_freeze.freezing.data_flow.module_graph import stages, training_steps


def require_labels(model: nn.Module, dataset: Any) -> None:
    """Raise one DataError for all heads that give a loss but whose label no frame of ``dataset`` has.

    A head's labels are its ``reads_train`` without the keys that modules write; the data set declares its
    ``labels``. Frozen heads need none. Nothing is checked where one of the two is not declared.
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
    _require_classes({part.name: part.module for part in parts if steps[part.name].loss}, dataset)


def _require_classes(heads: Mapping[str, nn.Module], dataset: Any) -> None:
    """Raise one DataError for all ``heads`` with classes that no frame of ``dataset`` is labelled for."""
    labelled = getattr(dataset, "labelled_classes", None)
    if labelled is None:
        return
    lacking = {
        name: missing
        for name, head in heads.items()
        if (missing := [c for c in classes_of(head) if c not in labelled])
    }
    together = getattr(dataset, "labelled_together", None) or [labelled]
    if not lacking:
        _require_together({name: classes_of(head) for name, head in heads.items()}, together)
    else:
        needs = "; ".join(f"{head} has {', '.join(names)}" for head, names in lacking.items())
        raise DataError(
            "A head learns from frames that are labelled for all of its classes, but the training data is "
            f"labelled for {', '.join(labelled) or 'none'} (DATA_CONFIG.LABELLED_CLASSES): {needs}. Name the "
            "head in MODEL.NOT_TRAIN_IN_MULTI_TASK, give its new classes a head of their own "
            "(MODEL.DENSE_HEADS), or add labels"
        )


def _require_together(heads: Mapping[str, Sequence[str]], together: Sequence[Sequence[str]]) -> None:
    """Raise one DataError for all ``heads`` (name -> classes) without a frame that is labelled for them."""
    apart = {name: own for name, own in heads.items() if not any({*own} <= {*names} for names in together)}
    if apart:
        needs = "; ".join(f"{head} has {', '.join(own)}" for head, own in apart.items())
        sets = "; ".join(", ".join(names) for names in together)
        raise DataError(
            f"A head learns from frames that are labelled for all of its classes, but {needs}, and no frame "
            f"is labelled for them together. Classes of the sets: {sets}. Give the classes of each set a "
            "head of their own (MODEL.DENSE_HEADS), or add labels"
        )
