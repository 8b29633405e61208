"""A batch's way to the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from pcdet_freeze.models import load_data_to_gpu

Move = Callable[[dict[str, Any], torch.device], None]


def move_with(then: Callable[[dict[str, Any]], None] | None) -> Move:
    """Bring a batch to the device, in place, and then do ``then`` with it there."""
    if then is None:
        return load_data_to_gpu

    def move(batch_dict: dict[str, Any], device: torch.device) -> None:
        load_data_to_gpu(batch_dict, device)
        then(batch_dict)

    return move
