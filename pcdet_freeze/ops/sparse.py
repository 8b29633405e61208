"""Sparse 3D convolution. This is the only file that imports spconv, and only when a sparse layer is built.

The layers hide the following properties of spconv 2.3:

* The CPU path supports one algorithm (Native); the fast one of the CUDA path is implicit GEMM. The layers
  select it by the device of their input, so that a model can be moved.
* On the CPU, a bias is refused in eval mode, and non-contiguous indices silently give wrong results. The
  layers add the bias themselves, and ``sparse_tensor`` makes indices contiguous.
* bfloat16 is not supported: under autocast to bfloat16, sparse convolutions run in float32.
* The CUDA path builds no graph in eval mode, so a frozen layer in eval mode would block the gradient of the
  layers before it. Here the graph follows ``torch.is_grad_enabled()``, as everywhere in torch.

Convolutions are those of SECOND (Sensors 2018, 18(10), 3337, section 3.1.2) and of Graham et al.
(arXiv:1711.10275). Weights are stored as (out, z, y, x, in).
"""

from __future__ import annotations

import functools
import importlib
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.ops.maps.map_layout import map_of
from pcdet_freeze.ops.norm import batch_norm

SparseTensor = Any
"""spconv's tensor: ``features`` (N, C), ``indices`` (N, 4) int32 [sample, z, y, x], ``spatial_shape``
[z, y, x], ``batch_size``."""

Triple = tuple[int, int, int]
"""values along z, y, x"""

LAYERS = ("SubMConv3d", "SparseConv3d")
"""names of the layers, which are those of their base classes in spconv"""


class _Portable:
    """Mixin for spconv's layers: a forward that works on every device and in train and eval mode."""

    takes_sparse = True

    def forward(self: Any, x: SparseTensor, add_input: SparseTensor | None = None) -> SparseTensor:
        """Convolve, and add ``add_input`` (same active sites as the output)."""
        if len(x.features) == 0:
            return self.convolve_empty(x)
        on_gpu, needs_graph = x.features.is_cuda, torch.is_grad_enabled()
        self.algo = _algorithms().MaskImplicitGemm if on_gpu else _algorithms().Native
        # neighbour indices computed without a graph lack the data for the gradient, so they are not shared
        self.indice_key = self.shared_key if needs_graph else f"{self.shared_key} (no gradient)"
        with _precision(x.features):
            x = x.replace_feature(x.features.float()) if x.features.dtype == torch.bfloat16 else x
            out = self._conv_forward(needs_graph, x, self.weight, None, add_input)
        return out if self.bias is None else out.replace_feature(out.features + self.bias)

    def convolve_empty(self: Any, x: SparseTensor) -> SparseTensor:
        """Output for an input without active sites, which the CPU path refuses; gradients are zero."""
        shape = x.spatial_shape
        if not self.subm:
            shape = conv_output_shape(tuple(shape), self.kernel_size, self.stride, self.padding)
        features = x.features @ self.weight.flatten(1, 3).sum(dim=1).t()
        features = features if self.bias is None else features + self.bias
        return sparse_tensor(features, x.indices, shape, x.batch_size)


def _precision(features: Tensor) -> AbstractContextManager[Any]:
    """Disable autocast, except for float16 on a GPU, the only autocast dtype of spconv's kernels."""
    if features.is_cuda and _autocast_dtype() == torch.float16:
        return nullcontext()
    return torch.autocast(features.device.type, enabled=False)


def _autocast_dtype() -> torch.dtype:
    if hasattr(torch, "get_autocast_dtype"):
        return torch.get_autocast_dtype("cuda")
    return torch.get_autocast_gpu_dtype()  # torch before 2.4


@functools.cache
def _spconv() -> ModuleType:
    try:
        with warnings.catch_warnings():
            # spconv 2.3 uses decorators that torch has deprecated
            warnings.simplefilter("ignore", FutureWarning)
            found = importlib.import_module("spconv.pytorch")
    except ImportError as error:
        raise ConfigError(
            f"sparse convolutions require spconv, which cannot be imported ({error}). Install "
            "spconv-cu120 or another build of spconv 2.3 (the CUDA builds run on a CPU too), "
            "or use a pillar model."
        ) from error
    # what torch logs where spconv asks it for a trace is advice for the authors of spconv
    logging.getLogger("torch.fx._symbolic_trace").addFilter(lambda r: "is_fx_tracing" not in r.getMessage())
    return found


def _algorithms() -> Any:
    return _spconv().ConvAlgo


@functools.cache
def _layer(name: str) -> type[nn.Module]:
    """The layer class ``name``, created on first use, because its base class requires spconv."""
    base = getattr(_spconv(), name)
    return type(
        name, (_Portable, base), {"__module__": __name__, "__doc__": f"spconv's {name}, on any device."}
    )


def __getattr__(name: str) -> Any:
    # copying and unpickling a model look up its layer classes by name
    if name in LAYERS:
        return _layer(name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def submanifold_conv(
    channels_in: int, channels_out: int, kernel: int, key: str, bias: bool = False
) -> nn.Module:
    """Submanifold convolution: its output has the active sites of its input.

    Layers on the same sites with the same kernel size use the same ``key``, so that neighbours are computed
    once per forward.
    """
    layer = _layer("SubMConv3d")(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
    return _share(layer, key)


def strided_conv(
    channels_in: int, channels_out: int, kernel: Triple, stride: Triple, padding: Triple, key: str
) -> nn.Module:
    """Strided sparse convolution without bias: its output is active where the kernel covers an active site.

    ``key`` must be unique within the model.
    """
    layer = _layer("SparseConv3d")(
        channels_in, channels_out, list(kernel), stride=list(stride), padding=list(padding), bias=False
    )
    return _share(layer, key)


def _share(layer: Any, key: str) -> nn.Module:
    layer.shared_key = layer.indice_key = key
    return layer


class SparseSequential(nn.Sequential):
    """Sequential for sparse tensors; dense layers (batch norm, ReLU) are applied to the features."""

    takes_sparse = True

    def forward(self, x: SparseTensor) -> SparseTensor:
        """Sparse tensor -> sparse tensor."""
        for layer in self:
            if getattr(layer, "takes_sparse", False):
                x = layer(x)
            elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
                x = on_features(x, functools.partial(batch_norm, layer))
            else:
                x = on_features(x, layer)
        return x


def on_features(x: SparseTensor, layer: Callable[[Tensor], Tensor]) -> SparseTensor:
    """``x`` with ``layer`` applied to its features (N, C)."""
    return x.replace_feature(layer(x.features))


def sparse_tensor(features: Tensor, coords: Tensor, shape: Sequence[int], batch_size: int) -> SparseTensor:
    """Sparse tensor of features (N, C) at coords (N, 4) [sample, z, y, x] in a grid ``shape`` [z, y, x]."""
    indices = coords.to(torch.int32).contiguous()
    return _spconv().SparseConvTensor(features.contiguous(), indices, list(shape), batch_size)


def conv_output_shape(shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Grid size [z, y, x] after a strided convolution of a grid of size ``shape``."""
    z, y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True))
    return z, y, x


def dense(x: SparseTensor) -> Tensor:
    """Dense tensor (B, C, Z, Y, X), zero at inactive sites."""
    shape = (x.batch_size, *x.spatial_shape)
    place = x.indices[:, 0].long()
    for axis, cells in enumerate(x.spatial_shape, start=1):
        place = place * cells + x.indices[:, axis].long()
    out = x.features.new_zeros(math.prod(shape), x.features.shape[1])
    out[place] = x.features
    return out.view(*shape, -1).permute(0, 4, 1, 2, 3).contiguous()


def bev_map(x: SparseTensor) -> Tensor:
    """``dense`` with the height layers as channels, (B, C * Z, Y, X), in channels-last memory."""
    (depth, height, width), channels = x.spatial_shape, x.features.shape[1]
    sample, layer, row, column = x.indices.long().unbind(1)
    out = x.features.new_zeros(x.batch_size * height * width, channels, depth)
    out[(sample * height + row) * width + column, :, layer] = x.features
    return map_of(out.flatten(1), x.batch_size, height, width)
