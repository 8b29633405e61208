"""Fold a frozen BatchNorm into the convolution or linear layer before it (F5).

BatchNorm in eval mode is y = (x - mean) * s + shift with s = scale / sqrt(variance + eps) for each channel.
After a linear map Wx + b it gives another linear map, with weight s * W and bias (b - mean) * s + shift
(Jacob et al., arXiv:1712.05877, section 3.2). Products are computed in float64 and rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.freezing.eval_lock import base_class
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.winograd import convolve_pairs, pair_weights, takes
from pcdet_freeze.utils.tensors import INFINITE, error_sums, tensors_of

_OUT_AXIS: dict[type, int] = {
    nn.Linear: 0,
    nn.Conv1d: 0,
    nn.Conv2d: 0,
    nn.Conv3d: 0,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 1,
    nn.ConvTranspose3d: 1,
}
_SPARSE = ("SubMConv2d", "SubMConv3d", "SparseConv2d", "SparseConv3d")
"""names of spconv's layers, subclasses included; their weights are (out, kernel..., in)"""
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def out_axis(layer: nn.Module) -> int | None:
    """Axis of the output channels in the weight of ``layer``; None if no norm can be folded into it."""
    return 0 if is_sparse(layer) else _OUT_AXIS.get(kind_of(layer))


def kind_of(layer: nn.Module) -> type[nn.Module]:
    """The class of ``layer``, or the class of torch that it names in ``computes_as`` and computes as."""
    own: type[nn.Module] = base_class(layer)
    computes_as: type[nn.Module] = own.__dict__.get("computes_as", own)
    return computes_as


def is_sparse(layer: nn.Module) -> bool:
    """Whether ``layer`` is a convolution of spconv, or of a subclass."""
    kinds = type(layer).__mro__
    return any(kind.__module__.startswith("spconv.") and kind.__name__ in _SPARSE for kind in kinds)


def out_channels(layer: nn.Module) -> int:
    """Number of output channels of ``layer``, which has an :func:`out_axis`."""
    weight, axis = layer._parameters["weight"], out_axis(layer)
    assert weight is not None
    return weight.shape[0] if axis == 0 else weight.shape[1] * int(layer.groups)  # type: ignore[arg-type]


def is_foldable_norm(norm: nn.Module) -> bool:
    """Whether ``norm`` is a BatchNorm of torch, in eval mode, with running statistics."""
    return kind_of(norm) in _NORMS and not norm.training and norm._buffers.get("running_mean") is not None


def own_padding(pad: nn.Module, layer: nn.Module) -> tuple[int, int] | None:
    """The padding with which ``layer`` gives the same output without ``pad`` before it; None: there is none.

    OpenPCDet's backbones pad by a ZeroPad2d, which copies the whole map.
    """
    if type(pad) is not nn.ZeroPad2d or kind_of(layer) is not nn.Conv2d:
        return None
    left, right, top, bottom = pad.padding
    plain = layer.padding == (0, 0) and layer.padding_mode == "zeros"
    return (top, left) if plain and left == right >= 0 and top == bottom >= 0 else None


class Fold:
    """``layer`` with ``norm`` folded in: while patched, ``layer`` computes both and ``norm`` passes through.

    The folded weights are computed on first use, and again when one of the original tensors was written to
    or replaced.

    Args:
        pad: a padding layer before ``layer``, which passes through while ``layer`` pads by itself.
        relu: a ReLU that alone reads the output of ``norm``, and overwrites it.
    """

    def __init__(
        self,
        layer: nn.Module,
        norm: nn.Module,
        options: Options | None = None,
        pad: nn.Module | None = None,
        relu: nn.Module | None = None,
    ) -> None:
        self.layer, self.norm, self.options = layer, norm, options or Options()
        self.pad, self.relu = pad, relu
        self.pending = 0
        """calls of the layer that no call of the norm has followed yet"""
        self.unpadded = 0
        """calls of the padding layer that no call of the layer has followed yet"""
        self.rectified = 0
        """calls of the layer that computed the ReLU too, and that no call of it has followed yet"""
        self._made_from: tuple[Any, ...] = ()
        self._weights: tuple[Tensor, Tensor] | None = None
        self._pairs: Tensor | None = None

    def clear(self) -> bool:
        """Reset the counters; returns whether a call of the layer lacks that of the norm or the ReLU."""
        unanswered = self.pending > 0 or self.unpadded > 0 or self.rectified > 0
        self.pending = self.unpadded = self.rectified = 0
        return unanswered

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules whose forwards are replaced."""
        several = (self.layer, self.norm, self.pad, self.relu)
        return tuple(module for module in several if module is not None)

    def forwards(self) -> dict[nn.Module, Any]:
        """module -> the forward that replaces its own."""
        found: dict[nn.Module, Any] = {self.layer: self.run_layer, self.norm: self.run_norm}
        found |= {} if self.pad is None else {self.pad: self.run_pad}
        return found | ({} if self.relu is None else {self.relu: self.run_relu})

    def run_pad(self, value: Tensor) -> Tensor:
        """Return ``value`` unchanged: the layer pads it."""
        self.unpadded += 1
        return value

    def run_relu(self, value: Tensor) -> Tensor:
        """ReLU in the memory of ``value``, unless the layer has computed it."""
        if self.rectified:
            self.rectified -= 1
            return value
        return F.relu(value) if value.requires_grad else F.relu_(value)

    def run_layer(self, *args: Any, **kwargs: Any) -> Any:
        """Forward of the layer with the norm folded in."""
        self.pending += 1
        pads = self.unpadded > 0
        self.unpadded -= pads
        if self._has_few_products(args, kwargs, pads):
            self.rectified += self.relu is not None
            return self._few_products(args[0], relu=self.relu is not None)
        return self.fold(args, kwargs, pads)

    def run_norm(self, value: Tensor) -> Any:
        """Return ``value`` unchanged if the layer has normalised it, else run the norm."""
        if not self.pending:
            return type(self.norm).forward(self.norm, value)
        self.pending -= 1
        return value

    def fold(self, args: tuple[Any, ...], kwargs: dict[str, Any], pads: bool) -> Any:
        """Run the layer's forward with the folded weights in place of its parameters.

        Args:
            pads: whether the layer also pads, in place of ``pad``.
        """
        if self._has_few_products(args, kwargs, pads):
            return self._few_products(args[0])
        own, parameters = dict(self.layer._parameters), self.layer._parameters
        attributes = self.layer.__dict__
        weight, bias = self.weights()
        parameters.update({"weight": weight, "bias": bias})  # type: ignore[dict-item]  # plain tensors
        padding = attributes.get("padding")
        try:
            if pads and self.pad is not None:
                attributes["padding"] = own_padding(self.pad, self.layer) or padding
            if type(self.layer) is nn.ConvTranspose2d and not kwargs and _is_single(self.layer, *args):
                return F.conv2d(args[0], weight.transpose(0, 1), bias)
            return type(self.layer).forward(self.layer, *args, **kwargs)
        finally:
            parameters.update(own)
            if pads:
                attributes["padding"] = padding

    def _has_few_products(self, args: tuple[Any, ...], kwargs: dict[str, Any], pads: bool) -> bool:
        if not self.options.few_products or kwargs or len(args) != 1:
            return False
        padding: object = self.layer.__dict__.get("padding")
        if pads and self.pad is not None:
            padding = own_padding(self.pad, self.layer)
        return takes(self.layer, args[0], padding)

    def _few_products(self, maps: Tensor, relu: bool = False) -> Tensor:
        weight, bias = self.weights()
        if self._pairs is None:
            self._pairs = pair_weights(weight)
        return convolve_pairs(maps, self._pairs, bias, relu)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Folded weight and bias."""
        own = [
            *self.layer._parameters.values(),
            *self.norm._parameters.values(),
            *self.norm._buffers.values(),
        ]
        made_from = (self.norm.eps, *((id(t), t._version, t.data_ptr()) for t in own if t is not None))
        if self._weights is None or made_from != self._made_from:
            weight, bias = folded_weights(self.layer, self.norm)
            if not self.options.is_exact and not is_sparse(self.layer):  # spconv has no bfloat16
                weight, bias = weight.to(self.options.dtype), bias.to(self.options.dtype)
            if self.options.channels_last and weight.dim() == 4:
                weight = weight.contiguous(memory_format=torch.channels_last)
            self._weights, self._made_from, self._pairs = (weight, bias), made_from, None
        return self._weights


def _is_single(layer: nn.ConvTranspose2d, maps: Tensor, *others: Any) -> bool:
    """Whether each output reads one cell of a channels-last map: a 1x1 convolution, faster on the CPU."""
    last = not maps.is_contiguous() and maps.is_contiguous(memory_format=torch.channels_last)
    one = layer.kernel_size == layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    plain = one and layer.padding == layer.output_padding == (0, 0) and not others
    return plain and last and maps.device.type == "cpu"


class AllCompared(BaseException):
    """Ends a forward that runs only to compare folds: no later layer would be compared."""


class ValidationFold(Fold):
    """Runs both forms and returns the plain output, so that each pair is compared separately."""

    waiting: set[Fold] | None = None
    """folds that are to be compared yet, this one included; the last one raises AllCompared. None: never"""

    error: Tensor = torch.tensor(INFINITE, dtype=torch.float64)
    """sums of the relative error (L2) of the norm's output, see :func:`error_sums`"""
    _before_pad: Tensor | None = None

    def run_pad(self, value: Tensor) -> Tensor:
        self._before_pad = value
        result: Tensor = type(self.pad).forward(self.pad, value)  # type: ignore[union-attr]
        return result

    def run_layer(self, *args: Any, **kwargs: Any) -> Any:
        self._given = args, kwargs
        result = type(self.layer).forward(self.layer, *args, **kwargs)
        self._plain = next(tensors_of(result))
        return result

    def run_norm(self, value: Tensor) -> Any:
        result = type(self.norm).forward(self.norm, value)
        args, kwargs = self._given
        before_pad, self._before_pad = self._before_pad, None
        if before_pad is None:
            folded = next(tensors_of(self.fold(args, kwargs, pads=False)))
        else:
            folded = next(tensors_of(self.fold((before_pad,), {}, pads=True)))
        same_memory = value.untyped_storage().data_ptr() == self._plain.untyped_storage().data_ptr()
        if same_memory and folded.stride() == self._plain.stride():
            offset = value.storage_offset() - self._plain.storage_offset() + folded.storage_offset()
            self.error = error_sums(result, folded.as_strided(value.shape, value.stride(), offset))
        del self._given, self._plain
        self._end_if_last()
        return result

    def _end_if_last(self) -> None:
        if self.waiting is not None and self in self.waiting:
            self.waiting.remove(self)
            if not self.waiting:
                raise AllCompared


@torch.no_grad()
def folded_weights(layer: nn.Module, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Compute weight and bias of ``layer`` with ``norm`` folded in."""
    weight, bias = layer._parameters["weight"], layer._parameters.get("bias")
    mean, variance = norm._buffers["running_mean"], norm._buffers["running_var"]
    assert weight is not None and mean is not None and variance is not None
    factor = (variance.double() + float(norm.eps)).rsqrt()  # type: ignore[arg-type]
    scale, shift = norm._parameters.get("weight"), norm._parameters.get("bias")
    factor = factor if scale is None else factor * scale.double()
    offset = -mean.double() if bias is None else bias.double() - mean.double()
    offset = offset * factor if shift is None else offset * factor + shift.double()
    return (weight.double() * _along(factor, weight, layer)).to(weight.dtype), offset.to(weight.dtype)


def _along(factor: Tensor, weight: Tensor, layer: nn.Module) -> Tensor:
    """``factor`` (channels,) in a shape that broadcasts along the output channels of ``weight``."""
    axis = out_axis(layer)
    if axis == 0:
        return factor.view(-1, *[1] * (weight.dim() - 1))
    # a transposed convolution: (in, out / groups, kernel...), input channels ordered by group
    groups = int(layer.groups)  # type: ignore[arg-type]
    rows = factor.view(groups, 1, -1).expand(-1, weight.shape[0] // groups, -1)
    return rows.reshape(weight.shape[0], -1, *[1] * (weight.dim() - 2))
