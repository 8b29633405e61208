"""Numbers on their way from a data set to a model."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

NAMES = ("frame_id", "cache_entry")
"""keys of a batch that stay as they are, whatever they hold"""


def number_tensor(array: np.ndarray) -> torch.Tensor:
    """A numeric array as a tensor: float64 becomes float32, unsigned types that torch lacks int64."""
    if array.dtype in (np.float64, np.uint16, np.uint32, np.uint64):
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def is_numeric(key: str, value: Any) -> bool:
    """Whether a batch's entry is an array that becomes a tensor."""
    return key not in NAMES and isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def as_tensors(batch_dict: dict[str, Any]) -> dict[str, Any]:
    """The same batch with tensors in place of its numeric arrays.

    Processes hand tensors over in shared memory; arrays would be pickled and copied.
    """
    return {k: number_tensor(v) if is_numeric(k, v) else v for k, v in batch_dict.items()}
