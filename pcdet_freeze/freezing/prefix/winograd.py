"""3x3 convolutions of channels-last maps by two thirds of the products (F5).

Two neighbouring outputs of a line need four products for each line of the kernel instead of six, those of
sums of four neighbouring inputs: Winograd's form F(2, 3) (Lavin and Gray, arXiv:1509.09308, section 4.1). It
is used along the lines alone. Along both axes 4/9 of the products would do, but their sums move four times
the map through memory, which takes as long as the products that they save. The relative error (L2) of a
layer, 4e-7 to 5e-7, is less than that of oneDNN's own convolution of such a map, 4e-7 to 6e-7.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.utils.devices import autocast_is_on, has_cpu_forms
from pcdet_freeze.utils.tracing import is_traced

CHANNELS = 128
"""with fewer input or output channels the sums take as long as the products that they save"""
ROOM = 1 << 20
"""values of each of the four maps of sums that are in use at once, per thread: 4 MB"""
_SUMS = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""of the three columns of a kernel"""
_WITH_BIAS = 1
"""the map of products that both outputs add"""


def takes(layer: nn.Module, maps: object, padding: object) -> bool:
    """Whether :func:`convolve_pairs` computes what ``layer`` does with this padding for ``maps``."""
    if type(layer) is not nn.Conv2d or padding != (1, 1) or layer.padding_mode != "zeros":
        return False
    plain = layer.kernel_size == (3, 3) and layer.stride == layer.dilation == (1, 1) and layer.groups == 1
    wide = min(layer.in_channels, layer.out_channels) >= CHANNELS
    return plain and wide and isinstance(maps, Tensor) and _is_fit(maps)


def _is_fit(maps: Tensor) -> bool:
    if maps.dim() != 4 or maps.dtype != torch.float32 or maps.requires_grad or not has_cpu_forms(maps):
        return False
    if maps.is_contiguous() or not maps.is_contiguous(memory_format=torch.channels_last):
        return False
    fast = torch.backends.mkldnn.is_available() and maps.shape[3] % 2 == 0
    return fast and not is_traced() and not autocast_is_on("cpu")


@torch.no_grad()
def pair_weights(weight: Tensor) -> Tensor:
    """(O, C, 3, 3) -> (4, O, C, 3, 1): sums of the columns of each kernel, in float64 and rounded once."""
    sums = torch.tensor(_SUMS, dtype=torch.float64, device=weight.device)
    made = torch.einsum("jk,ochk->joch", sums, weight.double()).to(weight.dtype)
    return torch.stack([one.contiguous(memory_format=torch.channels_last) for one in made[..., None]])


@torch.no_grad()
def convolve_pairs(maps: Tensor, weights: Tensor, bias: Tensor, relu: bool = False) -> Tensor:
    """3x3 convolution with stride 1 and padding 1; with ``relu`` its ReLU.

    Args:
        maps: (B, C, H, W) channels-last float32 on a CPU, W even.
        weights: (4, O, C, 3, 1), see :func:`pair_weights`.
        bias: (O,)

    Returns:
        (B, O, H, W), channels-last. The values of a sample do not depend on its batch.
    """
    samples, channels, height, width = maps.shape
    made = maps.new_empty(samples, height, width, weights.shape[1])
    step = max(1, min(height, ROOM * torch.get_num_threads() * 2 // (width * channels)))
    sums = maps.new_empty(4, step + 2, width // 2, channels)
    for cells, lines in zip(maps.permute(0, 2, 3, 1), made, strict=True):
        for begin in range(0, height, step):
            into = lines[begin : begin + step]
            _sum_columns(cells, begin - 1, sums[:, : len(into) + 2])
            _add_up(_products(sums[:, : len(into) + 2], weights, bias), into)
            if relu:
                into.clamp_min_(0)
    return made.permute(0, 3, 1, 2)


def _sum_columns(cells: Tensor, begin: int, into: Tensor) -> None:
    """Write the four sums for each pair of columns of the lines of ``cells`` (H, W, C) from ``begin`` on.

    Lines and columns outside of the map are zero.
    """
    first, last = max(0, -begin), min(into.shape[1], len(cells) - begin)
    into[:, :first].zero_()
    into[:, last:].zero_()
    left, right = cells[begin + first : begin + last].unflatten(1, (-1, 2)).unbind(2)
    a, b, c, d = into[:, first:last]
    torch.sub(right[:, :-1], right[:, 1:], out=a[:, 1:])
    torch.neg(right[:, :1], out=a[:, :1])
    torch.add(left, right, out=b)
    torch.sub(right, left, out=c)
    torch.sub(left[:, :-1], left[:, 1:], out=d[:, :-1])
    d[:, -1:].copy_(left[:, -1:])


def _products(sums: Tensor, weights: Tensor, bias: Tensor) -> list[Tensor]:
    """Four maps (lines, pairs of columns, O): ``sums`` convolved along the columns, without padding."""
    found = []
    for number, (rows, weight) in enumerate(zip(sums, weights, strict=True)):
        made = F.conv2d(rows.permute(2, 0, 1)[None], weight, bias if number == _WITH_BIAS else None)
        found.append(made[0].permute(1, 2, 0))
    return found


def _add_up(products: Sequence[Tensor], into: Tensor) -> None:
    """Write both outputs of each pair of columns into (lines, W, O); overwrites ``products``."""
    a, b, c, d = products
    left, right = into.unflatten(1, (-1, 2)).unbind(2)
    torch.add(a.add_(b), c, out=left)
    torch.sub(b.sub_(c), d, out=right)
