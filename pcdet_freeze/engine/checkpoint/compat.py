"""Sparse convolution weights of spconv 1.x, as in older checkpoints of OpenPCDet, in the layout of 2.x."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn


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
