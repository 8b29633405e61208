"""Batches from the loader to the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def load_data_to_gpu(batch_dict: dict[str, Any], device: torch.device | str | None = None) -> None:
    """Turn the arrays of a batch into tensors on ``device``, in place.

    float64 becomes float32, other types stay. Strings, lists, single numbers and ``frame_id`` stay as they
    are.

    Args:
        batch_dict: what ``collate_batch`` gave.
        device: where to; the current GPU, or the CPU where there is none.
    """
    target = torch.device(device) if device is not None else _default_device()
    for key, value in batch_dict.items():
        if key == "frame_id":
            continue
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
            value = _as_tensor(value)
        if isinstance(value, torch.Tensor):
            batch_dict[key] = value.to(target, non_blocking=True)


def _as_tensor(array: np.ndarray) -> torch.Tensor:
    if array.dtype in (np.float64, np.uint16, np.uint32, np.uint64):
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def _default_device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
