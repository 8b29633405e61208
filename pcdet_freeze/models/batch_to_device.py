"""Moves a batch from the loader to the device."""

from __future__ import annotations

from typing import Any

import torch

from pcdet_freeze.ops.batch_tensors import NAMES, is_numeric, number_tensor


def load_data_to_gpu(batch_dict: dict[str, Any], device: torch.device | str | None = None) -> None:
    """Convert the arrays of a batch to tensors on ``device``, in place.

    float64 becomes float32; other types are kept. Strings, lists, scalars and ``frame_id`` are not converted.

    Args:
        batch_dict: result of ``collate_batch``.
        device: target device; default: the current GPU, or the CPU if there is none.
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
