"""What OpenPCDet's checkpoints have that ours have not: numpy scalars, and sparse weights kernel first."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# a number of numpy's is written as a call of this function, which moved with numpy 2
_SCALAR_NAMES = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_NUMBER_TYPES = "?bhilqBHILQefd"
_TAKES_NAMES = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
"""whether the allow-list takes a function under another name than its own"""


def numpy_scalars() -> AbstractContextManager[Any]:
    """While it is open, ``torch.load(weights_only=True)`` also reads numpy's numbers; nothing else.

    A torch before 2.5 knows no such list; it then refuses them, as it does everything that is not plain.
    """
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    return nullcontext() if safe_globals is None else safe_globals(_allowed())


def _allowed() -> list[Any]:
    scalar = type(np.float64(0)).__reduce__(np.float64(0))[0]
    dtypes = [np.dtype(code) for code in _NUMBER_TYPES]
    return [
        *([(scalar, name) for name in _SCALAR_NAMES] if _TAKES_NAMES else [scalar]),
        np.dtype,
        *dict.fromkeys(type(dtype) for dtype in dtypes),
    ]


def fit_layouts(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``state`` with sparse weights of spconv 1.x, (kernel..., in, out), as (out, kernel..., in).

    A tensor is turned where its shape differs from the model's, is that of the model when turned, and belongs
    to no dense convolution of torch. All others are handed on as they are.
    """
    own = model.state_dict()
    dense = {
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd)
    }
    fitted = dict(state)
    for name, value in state.items():
        wanted = own[name].shape if name in own and name not in dense else value.shape
        if value.shape != wanted and value.ndim in (4, 5) and value.movedim(-1, 0).shape == wanted:
            fitted[name] = value.movedim(-1, 0).contiguous()
    return fitted
