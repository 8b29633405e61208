"""Memory format of BEV maps (B, C, H, W): whether they stay channels-last, as a scatter makes them.

A scatter writes the C features of a cell side by side. Copying the map of KITTI's grid into torch's
contiguous format takes 0.2 s a step on one core, and convolutions are slower on the copy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pcdet_freeze.utils.devices import autocast_is_on, has_cpu_forms
from pcdet_freeze.utils.tracing import is_traced

Choice = Literal["auto"] | bool
"""MODEL.CHANNELS_LAST: auto, or the same in every forward"""


class MapWriter:
    """Mixin for a module that writes a BEV map: the memory format of that map.

    With auto, maps are channels-last in the training forwards of a model that ``train_channels_last`` has
    prepared, where that is faster. Evaluations and other models use contiguous maps, as OpenPCDet does:
    oneDNN's convolutions of channels-last maps add up all products of an output one after the other, so that
    they round two to four times as much (relative error of a layer 3e-7 to 6e-7; contiguous maps 1.7e-7).
    """

    channels_last: Choice = "auto"
    is_trained_here: bool = False

    def writes_channels_last(self, device: torch.device) -> bool:
        """Whether the next map on ``device`` is channels-last."""
        if self.channels_last != "auto":
            return bool(self.channels_last)
        training = bool(getattr(self, "training", False))
        return training and self.is_trained_here and is_faster_channels_last(device)


def train_channels_last(modules: Iterable[object]) -> None:
    """Let the map writers among ``modules`` choose the faster memory format in training forwards."""
    for module in modules:
        if isinstance(module, MapWriter):
            module.is_trained_here = True


def is_faster_channels_last(device: torch.device) -> bool:
    """Whether training forwards on ``device`` are faster on channels-last maps.

    This is so on a CPU where oneDNN is there, as measured; and on CUDA where float32 convolutions run on
    tensor cores (TF32, or autocast), whose kernels compute in this format and convert others. The choice for
    CUDA follows from how its kernels work and was not measured.
    """
    if device.type == "cpu":
        return torch.backends.mkldnn.is_available() and bool(torch.backends.mkldnn.enabled)
    if device.type != "cuda":
        return False
    return torch.backends.cudnn.allow_tf32 or torch.is_autocast_enabled()


def is_channels_last(maps: Tensor) -> bool:
    """Whether ``maps`` has its channels side by side; False for a map that is contiguous in both formats."""
    if maps.dim() != 4 or maps.is_contiguous():
        return False
    return maps.is_contiguous(memory_format=torch.channels_last)


def lies_in_rows(maps: Tensor) -> bool:
    """Whether ``maps`` is channels-last, or some neighbouring channels of such a map, which are no copy."""
    if maps.dim() != 4 or maps.is_contiguous():
        return False
    _, channels, height, width = maps.shape
    sample, channel, line, cell = maps.stride()
    part = channel == 1 and cell >= channels and line == width * cell and sample == height * line
    return part or is_channels_last(maps)


def computes_here(maps: Tensor) -> bool:
    """Whether the operators of ``map_norm`` and ``map_products`` replace those of torch for ``maps``.

    They are for float32 on the CPU. Elsewhere, and in code that is traced (torch.compile, torch.jit.trace),
    torch's own operators run.
    """
    plain = has_cpu_forms(maps) and maps.dtype == torch.float32
    return plain and lies_in_rows(maps) and not is_traced() and not autocast_is_on("cpu")


def rows_of(maps: Tensor) -> Tensor:
    """(B, C, H, W) -> (B * H * W, C): a view where :func:`lies_in_rows` holds, a copy of any other map."""
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def map_of(rows: Tensor, samples: int, height: int, width: int) -> Tensor:
    """(B * H * W, C) -> (B, C, H, W), a channels-last view."""
    return rows.view(samples, height, width, rows.shape[1]).permute(0, 3, 1, 2)


class JoinedMap:
    """A channels-last map whose channels several layers write, each its own, instead of a concatenation.

    Args:
        like: a tensor of the map's dtype and device.
        shape: B, H, W.
        widths: channels of each part, in order.
    """

    def __init__(self, like: Tensor, shape: tuple[int, int, int], widths: Sequence[int]) -> None:
        self.shape = shape
        self.rows = like.new_empty(shape[0] * shape[1] * shape[2], sum(widths))
        self.places = self.rows.split(list(widths), dim=1)
        """(B * H * W, channels) of each part"""

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """The map (B, C, H, W) of ``parts``; a copy if one of them does not lie in its place."""
        if any(a.data_ptr() != b.data_ptr() for a, b in zip(parts, self.places, strict=True)):
            return torch.cat(list(parts), dim=1)
        result: Tensor = _Join.apply(map_of(self.rows, *self.shape), *parts)
        return result


class _Join(torch.autograd.Function):
    """Concatenation of parts that lie side by side already: no copy, forward and backward."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, *parts: Tensor) -> Tensor:
        ctx.widths = [part.shape[1] for part in parts]
        result = whole.data
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.saved_tensors  # raises where the map was changed in place, and the parts with it
        return None, *gradient.split(ctx.widths, dim=1)
