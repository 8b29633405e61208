"""When the compiled kernels of ragged pillars run: on a CPU, in training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.utils.devices import has_cpu_forms

COMPILED = (torch.float32, torch.float64)
"""dtypes of the compiled kernels"""


def has_kernels(rows: Tensor) -> bool:
    """Whether the compiled kernels take ``rows``; elsewhere torch's operators do the same."""
    return has_cpu_forms(rows) and rows.dtype in COMPILED and type(rows) is Tensor


def arrays(*tensors: Tensor) -> tuple[Any, ...]:
    """The memory of CPU tensors; of one that is not contiguous, a copy."""
    return tuple(tensor.detach().contiguous().numpy() for tensor in tensors)


def kernels() -> Any:
    """The compiled kernels. numba is imported with the first of them: frozen encoders need none."""
    from pcdet_freeze.ops.pillars import _ragged_kernels

    return _ragged_kernels
