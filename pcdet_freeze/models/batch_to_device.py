"""Batches from the loader to the device."""

from __future__ import annotations

from typing import Any

import torch

from pcdet_freeze.ops.batch_tensors import NAMES, is_numeric, number_tensor


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
        if is_numeric(key, value):
            value = number_tensor(value)
        if isinstance(value, torch.Tensor) and key not in NAMES:
            batch_dict[key] = value.to(target, non_blocking=True)


def _default_device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
