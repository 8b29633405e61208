"""Conversion of the arrays of a batch to tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

NAMES = ("frame_id", "cache_entry")
"""keys of a batch that are never converted"""


def number_tensor(array: np.ndarray) -> torch.Tensor:
    """A numeric array as a tensor; float64 becomes float32, unsigned types that torch lacks become int64."""
    if array.dtype in (np.float64, np.uint16, np.uint32, np.uint64):
        array = array.astype(np.float32 if array.dtype.kind == "f" else np.int64)
    if not array.flags.writeable or any(step < 0 for step in array.strides):
        array = array.copy()
    return torch.from_numpy(array)


def is_numeric(key: str, value: Any) -> bool:
    """True if the value of a batch key is an array that is converted to a tensor."""
    return key not in NAMES and isinstance(value, np.ndarray) and value.dtype.kind in "fiub"


def as_tensors(batch_dict: dict[str, Any]) -> dict[str, Any]:
    """The batch with its numeric arrays converted to tensors.

    Loader workers send tensors through shared memory; arrays would be pickled and copied.
    """
    return {k: number_tensor(v) if is_numeric(k, v) else v for k, v in batch_dict.items()}
