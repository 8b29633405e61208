"""Classes of the dense heads in a checkpoint: weights of a head mean nothing for other classes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.distributed import unwrap

KEY = "head_classes"
"""key in the plain data of a checkpoint: name of each dense head -> its classes, in their order"""


def classes_of(head: nn.Module) -> list[str]:
    """The classes of a dense head; empty for other modules."""
    names = getattr(head, "class_names", None)
    return list(names) if callable(getattr(head, "get_loss", None)) and names else []


def classes_of_heads(model: nn.Module) -> dict[str, list[str]]:
    """Name -> classes of each dense head of ``model``."""
    found = {name: classes_of(child) for name, child in unwrap(model).named_children()}
    return {name: classes for name, classes in found.items() if classes}


def stored_classes(checkpoint: Mapping[str, Any]) -> dict[str, list[str]]:
    """Name -> classes of each dense head of ``checkpoint``; empty if it does not say them (OpenPCDet's)."""
    ours = checkpoint.get(CHECKPOINT_KEY)
    found = ours.get(KEY) if isinstance(ours, Mapping) else None
    if not isinstance(found, Mapping):
        return {}
    return {str(name): [str(c) for c in names] for name, names in found.items() if isinstance(names, list)}


def other_classes(model: nn.Module, checkpoint: Mapping[str, Any], loaded: Collection[str]) -> list[str]:
    """A line about each head whose tensors (``loaded``) were trained for other classes than it has."""
    own, lines = classes_of_heads(model), []
    for head, then in stored_classes(checkpoint).items():
        now = own.get(head, then)
        if now != then and any(name.startswith(f"{head}.") for name in loaded):
            lines.append(f"{head} was trained for {', '.join(then)}, but is built for {', '.join(now)}")
    return lines


def require_same_classes(
    model: nn.Module, checkpoint: Mapping[str, Any], loaded: Collection[str], path: str | Path
) -> None:
    """Raise CheckpointError if ``model`` has a head with other classes than ``checkpoint``."""
    lines = other_classes(model, checkpoint, loaded)
    if lines:
        raise CheckpointError(
            f"A pretrained head must have the classes that it was trained for, in their order, but in {path} "
            f"{'; '.join(lines)}. Add new classes as a head of their own (MODEL.DENSE_HEADS, "
            "docs/multi_task.md), or load the weights all the same with --allow_mismatch."
        )
