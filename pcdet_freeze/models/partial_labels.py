"""Selects the frames of a batch that have the label of a task.

A data set may label its frames partially: ``has_<label>`` (B,) bool marks the frames of a batch that have the
label. If no frame has it, the label itself may be missing. Without flags, all frames are labelled.
Boxes may be labelled for some classes only: ``labelled_classes`` (B, C) bool, by the classes of the data set.
A dense head learns from the frames that are labelled for all of its classes.

A head always returns a loss, computed from the labelled frames. Without labelled frames the loss is zero but
still depends on all trainable parameters of the head, so that no rank waits for missing gradients under DDP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.devices import host_copy, is_accelerator, keep_host_copy, send

LABELLED_CLASSES = "labelled_classes"
"""key of a batch: (B, C) bool, the classes that each frame is labelled for; without it: all"""


def labelled_frames(batch_dict: dict[str, Any], label: str, who: str) -> Tensor | None:
    """(B,) bool on the device of the batch: the frames with ``label``; None means all frames.

    Raises:
        DataError: the batch has neither the label nor flags that are all False.
    """
    flags = batch_dict.get(f"has_{label}")
    if label not in batch_dict and (flags is None or bool(host_copy(torch.as_tensor(flags)).any())):
        raise DataError(
            f"{who} needs {label} to train, but the batch has none. Freeze the head, or add labels."
        )
    return None if flags is None else torch.as_tensor(flags)


def indices_of(flags: Tensor) -> Tensor:
    """(n,) int64, on the device of ``flags`` (B,) bool: the frames that are marked.

    Unlike ``flags`` itself as an index, it does not make the host wait for their number.
    """
    host = host_copy(flags)
    chosen = host.nonzero()[:, 0]
    return keep_host_copy(send(chosen, flags.device), chosen)


def rows_of(values: Tensor, chosen: Tensor) -> Tensor:
    """``values[chosen]``; the host knows it where it knows ``values``."""
    if not is_accelerator(values):
        return values[chosen]
    return keep_host_copy(values[chosen], host_copy(values)[host_copy(chosen)])


def boxes_to_learn(
    batch_dict: dict[str, Any], who: str, labels: Sequence[int], columns: int = 8
) -> tuple[Tensor, Tensor | None]:
    """``gt_boxes`` (B, G, columns), padded with zero rows, and the labelled frames (None: all).

    Args:
        labels: labels, from 1, of the classes that a frame must be labelled for.
    """
    flags = labelled_frames(batch_dict, "gt_boxes", who)
    if (classes := batch_dict.get(LABELLED_CLASSES)) is not None:
        flags = _frames_of(torch.as_tensor(classes), labels, flags)
    if "gt_boxes" not in batch_dict:
        assert flags is not None
        none = torch.zeros(len(flags), 1, columns)
        return keep_host_copy(send(none, flags.device), none), flags
    return batch_dict["gt_boxes"], flags


def _frames_of(classes: Tensor, labels: Sequence[int], flags: Tensor | None) -> Tensor:
    """(B,) bool on the device of ``classes`` (B, C): the frames of ``flags`` labelled for all ``labels``."""
    host = host_copy(classes)[:, [label - 1 for label in labels]].all(dim=1)
    host = host if flags is None else host & host_copy(flags)
    return keep_host_copy(send(host, classes.device), host)


def frame_names(batch_dict: dict[str, Any], frames: Tensor | None = None) -> str:
    """Names of the frames of a batch, or of those selected by ``frames`` (B,), for an error message."""
    names = [str(name) for name in batch_dict.get("frame_id", range(int(batch_dict["batch_size"])))]
    selected = names if frames is None else [n for n, yes in zip(names, frames.tolist(), strict=True) if yes]
    return ", ".join(selected[:8]) + (f" and {len(selected) - 8} more" if len(selected) > 8 else "")
