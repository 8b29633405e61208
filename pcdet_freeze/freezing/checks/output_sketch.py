"""Compare outputs of a module without keeping them: a few thousand numbers for each tensor.

Each element of a tensor is multiplied by a fixed random sign and added to one of ``BUCKETS`` sums. This is a
linear map, so the distance between the sums of two tensors is the distance between the tensors: its square
has the right expectation and a relative standard deviation of ``sqrt(2 / BUCKETS)``, 2 % (Alon, Matias,
Szegedy 1999; Charikar, Chen, Farach-Colton 2002). Tensors of up to ``BUCKETS`` elements are compared exactly,
and equal tensors always have equal sums.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pcdet_freeze.utils.tensors import pieces

BUCKETS = 4096
PIECE = 32 * BUCKETS
"""elements that are added at a time: a copy of no more is needed, for tensors of any size and strides"""
EXTRA = 2
"""numbers beside the sums: the squared norm, and a code of the places that are not finite"""


@dataclass(frozen=True)
class TensorSketch:
    """Stands for one tensor in a comparison."""

    shape: tuple[int, ...]
    is_half: bool
    """whether it has 16 bits an element"""
    numbers: Tensor
    """float64[EXTRA + BUCKETS at most], on the CPU"""


Sketch = dict[str, TensorSketch]
"""path of a tensor in an output -> its sketch"""


class Sketcher:
    """Makes sketches that can be compared with each other."""

    def __init__(self) -> None:
        own = torch.Generator().manual_seed(0)
        signs = torch.randint(2, (2 * PIECE,), generator=own, device="cpu", dtype=torch.float64) * 2 - 1
        self._signs = {torch.device("cpu"): signs}

    @torch.no_grad()
    def __call__(self, tensors: Mapping[str, Tensor]) -> Sketch:
        """Sketch all ``tensors``. The host waits once for each device that they are on."""
        groups: dict[torch.device, dict[str, Tensor]] = defaultdict(dict)
        shapes: dict[str, tuple[int, ...]] = {}
        for name, tensor in tensors.items():
            dense = _dense(tensor)
            shapes[name], numbers = tuple(dense.shape), self._numbers(dense)
            groups[numbers.device][name] = numbers
        found: dict[str, Tensor] = {}
        for group in groups.values():
            sizes = [len(numbers) for numbers in group.values()]
            found |= zip(group, torch.cat(list(group.values())).cpu().split(sizes), strict=True)
        half = torch.float16, torch.bfloat16
        return {n: TensorSketch(shapes[n], t.dtype in half, found[n]) for n, t in tensors.items()}

    def _numbers(self, tensor: Tensor) -> Tensor:
        # in float64, which mps does not have
        device = torch.device("cpu") if tensor.device.type == "mps" else tensor.device
        signs = self._signs.setdefault(device, self._signs[torch.device("cpu")].to(device))
        room = torch.empty(min(PIECE, tensor.numel()), device=device, dtype=torch.float64)
        found = torch.zeros(EXTRA + min(BUCKETS, tensor.numel()), device=device, dtype=torch.float64)
        for number, piece in enumerate(pieces(tensor, PIECE)):
            values, begin = room[: piece.numel()], number * 7919 % PIECE
            values.view(piece.shape).copy_(piece)
            squares = values @ values
            if device.type != "cpu" or not squares.isfinite():  # on a device the question would be a wait
                found[1] += (number + 1) * _code_and_clear(values)
                squares = values @ values
            found[0] += squares
            _add_in_buckets(found[EXTRA:], values.mul_(signs[begin : begin + len(values)]))
        return found


def _code_and_clear(values: Tensor) -> Tensor:
    """Code of the places of ``values`` that are not finite, which are set to 0."""
    finite = values.isfinite()
    place = torch.arange(1, len(values) + 1, device=values.device, dtype=torch.float64)
    code = torch.where(finite, 0.0, values.nan_to_num(1.0, 2.0, 3.0)) * place
    values.masked_fill_(~finite, 0.0)
    return code.sum()


def _add_in_buckets(sums: Tensor, values: Tensor) -> None:
    whole = len(values) // BUCKETS * BUCKETS
    if whole:
        sums += values[:whole].view(-1, BUCKETS).sum(0)
    sums[: len(values) - whole] += values[whole:]


def _dense(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.is_nested:  # TransformerEncoder makes them of padded batches, in eval mode only
        return tensor.to_padded_tensor(0.0)
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def max_relative_error(a: Sketch, b: Sketch, common: bool = False) -> float:
    """Largest relative error (L2) |b - a| / |a| between the tensors of two outputs; 0 for equal outputs.

    Elements that are NaN, or the same infinity, in both count as equal. Infinite where the shapes differ,
    where only one of two elements is finite, or where ``a`` is zero everywhere and ``b`` is not.

    Args:
        common: compare only tensors that both have, with equal shapes: a head may return more in one mode.
    """
    if common:
        names = [name for name in a if name in b and a[name].shape == b[name].shape]
    elif a.keys() != b.keys():
        return math.inf
    else:
        names = list(a)
    return max((_relative_error(a[name], b[name]) for name in names), default=0.0)


def _relative_error(a: TensorSketch, b: TensorSketch) -> float:
    if a.shape != b.shape or a.numbers[1] != b.numbers[1]:
        return math.inf
    error = float((b.numbers[EXTRA:] - a.numbers[EXTRA:]).norm())
    norm = float(a.numbers[0]) ** 0.5
    return error / norm if norm else (math.inf if error else 0.0)
