"""Sparse 3D convolution. The only file that imports spconv, and only when a sparse layer is made.

What a caller need not know about spconv 2.3:

* its CPU path has one algorithm (Native), the fast one of its CUDA path is implicit GEMM; the layers here
  choose by the device of their input, so that a model may move;
* on the CPU, a bias is refused in eval mode and indices that are not contiguous give wrong numbers in
  silence; the layers add their bias themselves, ``sparse_tensor`` makes indices contiguous;
* bfloat16 it does not know: under autocast to it, sparse convolutions stay in float32;
* its CUDA path builds no graph in eval mode, so that a frozen layer held in eval mode would cut the gradient
  of the layers before it; here the graph follows ``torch.is_grad_enabled()``, as everywhere in torch.

Convolutions are those of SECOND (Sensors 2018, 18(10), 3337, section 3.1.2) and of Graham et al.
(arXiv:1711.10275). Weights are stored as (out, z, y, x, in).
"""

from __future__ import annotations

import functools
import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.ops.norm import batch_norm

SparseTensor = Any
"""spconv's tensor: ``features`` (N, C), ``indices`` (N, 4) int32 [sample, z, y, x], ``spatial_shape``
[z, y, x], ``batch_size``."""

Triple = tuple[int, int, int]
"""Along z, y, x."""

LAYERS = ("SubMConv3d", "SparseConv3d")
"""Layers made here; each has the name of its base in spconv."""


class _Portable:
    """Forward of a sparse convolution that works on every device and in every mode; mixed into spconv's."""

    takes_sparse = True

    def forward(self: Any, x: SparseTensor, add_input: SparseTensor | None = None) -> SparseTensor:
        """Convolve; ``add_input`` (same active sites as the result) is added."""
        if len(x.features) == 0:
            return self.convolve_nothing(x)
        on_gpu, needs_graph = x.features.is_cuda, torch.is_grad_enabled()
        self.algo = _algorithms().MaskImplicitGemm if on_gpu else _algorithms().Native
        # neighbours found without a graph lack what a gradient needs: layers with and without share none
        self.indice_key = self.shared_key if needs_graph else f"{self.shared_key} (no gradient)"
        with _precision(x.features):
            x = x.replace_feature(x.features.float()) if x.features.dtype == torch.bfloat16 else x
            out = self._conv_forward(needs_graph, x, self.weight, None, add_input)
        return out if self.bias is None else out.replace_feature(out.features + self.bias)

    def convolve_nothing(self: Any, x: SparseTensor) -> SparseTensor:
        """No active site, which spconv's CPU path refuses: none comes out, and gradients are zero."""
        shape = x.spatial_shape
        if not self.subm:
            shape = conv_output_shape(tuple(shape), self.kernel_size, self.stride, self.padding)
        features = x.features @ self.weight.flatten(1, 3).sum(dim=1).t()
        features = features if self.bias is None else features + self.bias
        return sparse_tensor(features, x.indices, shape, x.batch_size)


def _precision(features: Tensor) -> AbstractContextManager[Any]:
    """Autocast stays on where spconv has kernels for its type, which is float16 on a GPU."""
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
            # spconv 2.3 decorates its functions with names that torch has moved
            warnings.simplefilter("ignore", FutureWarning)
            return importlib.import_module("spconv.pytorch")
    except ImportError as error:
        raise ConfigError(
            f"sparse convolutions need spconv, which cannot be imported here ({error}): install "
            "spconv-cu120 or another build of spconv 2.3 (the CUDA builds run on a CPU too), "
            "or use a pillar model"
        ) from error


def _algorithms() -> Any:
    return _spconv().ConvAlgo


@functools.cache
def _layer(name: str) -> type[nn.Module]:
    """The layer class ``name``, made on first use, since its base needs spconv."""
    base = getattr(_spconv(), name)
    return type(
        name, (_Portable, base), {"__module__": __name__, "__doc__": f"spconv's {name}, on any device."}
    )


def __getattr__(name: str) -> Any:
    # copies and pickles of a model look its layers up by name
    if name in LAYERS:
        return _layer(name)
    raise AttributeError(f"module {__name__} has no attribute {name}")


def submanifold_conv(
    channels_in: int, channels_out: int, kernel: int, key: str, bias: bool = False
) -> nn.Module:
    """Convolution whose output has the active sites of its input.

    Layers on the same sites with the same kernel share ``key``: neighbours are then found once a forward.
    """
    layer = _layer("SubMConv3d")(channels_in, channels_out, kernel, padding=kernel // 2, bias=bias)
    return _share(layer, key)


def strided_conv(
    channels_in: int, channels_out: int, kernel: Triple, stride: Triple, padding: Triple, key: str
) -> nn.Module:
    """Convolution whose output is active wherever its kernel meets an active site. No bias.

    ``key`` must be a key of its own within the model.
    """
    layer = _layer("SparseConv3d")(
        channels_in, channels_out, list(kernel), stride=list(stride), padding=list(padding), bias=False
    )
    return _share(layer, key)


def _share(layer: Any, key: str) -> nn.Module:
    layer.shared_key = layer.indice_key = key
    return layer


class SparseSequential(nn.Sequential):
    """Layers in a row; one that does not take a sparse tensor (batch norm, ReLU) sees the features only."""

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
    """Features (N, C) at coords (N, 4) [sample, z, y, x] of a grid of ``shape`` [z, y, x] cells."""
    indices = coords.to(torch.int32).contiguous()
    return _spconv().SparseConvTensor(features.contiguous(), indices, list(shape), batch_size)


def conv_output_shape(shape: Triple, kernel: Triple, stride: Triple, padding: Triple) -> Triple:
    """Cells [z, y, x] after a strided convolution of a grid of ``shape`` cells."""
    z, y, x = ((n + 2 * p - k) // s + 1 for n, k, s, p in zip(shape, kernel, stride, padding, strict=True))
    return z, y, x


def dense(x: SparseTensor) -> Tensor:
    """(B, C, Z, Y, X) with zeros where no site is active."""
    shape = (x.batch_size, *x.spatial_shape)
    place = x.indices[:, 0].long()
    for axis, cells in enumerate(x.spatial_shape, start=1):
        place = place * cells + x.indices[:, axis].long()
    out = x.features.new_zeros(math.prod(shape), x.features.shape[1])
    out[place] = x.features
    return out.view(*shape, -1).permute(0, 4, 1, 2, 3).contiguous()
