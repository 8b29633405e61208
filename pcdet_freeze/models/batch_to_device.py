"""Moves a batch from the loader to the device."""

from __future__ import annotations

from typing import Any

import torch

from pcdet_freeze.ops.batch_tensors import NAMES, is_numeric, number_tensor
from pcdet_freeze.utils.devices import keep_host_copy, send


def load_data_to_gpu(batch_dict: dict[str, Any], device: torch.device | str | None = None) -> None:
    """Convert the arrays of a batch to tensors on ``device``, in place.

    float64 becomes float32; other types are kept. Strings, lists, scalars and ``frame_id`` are not converted.
    The host does not wait for the copies. What it must know of labels later (their number, the size of
    boxes), it reads from the tensors that were copied, which are kept (``utils.devices.host_copy``).

    Args:
        batch_dict: result of ``collate_batch``.
        device: target device; default: the current GPU, or the CPU if there is none.
    """
    target = torch.device(device) if device is not None else _default_device()
    for key, value in batch_dict.items():
        if is_numeric(key, value):
            value = number_tensor(value)
        if isinstance(value, torch.Tensor) and key not in NAMES:
            moved = send(value, target)
            batch_dict[key] = moved if moved is value else keep_host_copy(moved, value)


def _default_device() -> torch.device:
    return (
        torch.device("cuda", torch.cuda.current_device())
        if torch.cuda.is_available()
        else torch.device("cpu")
    )
