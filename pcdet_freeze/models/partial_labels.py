"""Which frames of a batch a task can learn from.

A data set may label its frames in part: ``has_<label>`` (B,) bool says which frames of a batch carry that
label, and where none does, the label itself may be missing. A batch without such flags is labelled whole.

A head gives a loss in any case, in which only labelled frames count. Where there are none, it is zero and
still depends on all that the head trains: so no process waits for gradients that never come.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.errors import DataError


def labelled_frames(batch_dict: dict[str, Any], label: str, who: str) -> Tensor | None:
    """(B,) bool, on the device of the batch: the frames with ``label``; None: all of them.

    Raises DataError where the batch neither has the label nor says that it has none.
    """
    flags = batch_dict.get(f"has_{label}")
    if label not in batch_dict and (flags is None or bool(torch.as_tensor(flags).any())):
        raise DataError(f"{who} needs {label} to train; the batch has none: freeze the head, or add labels")
    return None if flags is None else torch.as_tensor(flags)


def boxes_to_learn(batch_dict: dict[str, Any], who: str, columns: int = 8) -> tuple[Tensor, Tensor | None]:
    """``gt_boxes`` (B, G, columns), zero rows where a frame has none; the frames that count (None: all)."""
    flags = labelled_frames(batch_dict, "gt_boxes", who)
    if "gt_boxes" not in batch_dict:
        assert flags is not None
        return torch.zeros(len(flags), 1, columns, device=flags.device), flags
    return batch_dict["gt_boxes"], flags


def frame_names(batch_dict: dict[str, Any], frames: Tensor | None = None) -> str:
    """Names of the frames of a batch, or of those that ``frames`` (B,) picks, for a message."""
    names = [str(name) for name in batch_dict.get("frame_id", range(int(batch_dict["batch_size"])))]
    picked = names if frames is None else [n for n, yes in zip(names, frames.tolist(), strict=True) if yes]
    return ", ".join(picked[:8]) + (f" and {len(picked) - 8} more" if len(picked) > 8 else "")
