"""Run blocks of the frozen prefix only on the cells of a BEV map that a pillar can reach (F5).

A convolution with a folded norm layer does the same everywhere, so a cell that no occupied cell reaches has
the value that it has in an empty map: one constant for each channel, and others near the borders. Each block
is therefore computed once on an empty map. After that only reached cells are computed: their neighbourhoods
are gathered as rows of a matrix product. Samples are computed one by one, so that the values of a sample do
not depend on its batch. On a CPU alone: elsewhere the number of cells is not known without waiting for the
device.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.freezing.prefix.fold_bn import Fold, kind_of, own_padding
from pcdet_freeze.freezing.prefix.map_rows import DENSE, Rows, distinct, joined, samples_of
from pcdet_freeze.utils.devices import autocast_is_on, has_cpu_forms
from pcdet_freeze.utils.foreign_code import has_foreign_code, is_ours
from pcdet_freeze.utils.tensors import relative_error

ROWS = 512
"""rows of a matrix product: its operands stay in the cache of a core"""
TOLERANCE = 2e-6
"""limit of the relative error (L2) of a block for each of its layers, against the same block computed as a
whole"""


def chain_of(
    path: str, block: nn.Module, folds: Mapping[str, str], pads: Mapping[str, str], relus: Mapping[str, str]
) -> tuple[str, ...]:
    """Paths of the layers of ``block``, if it is a chain of folded 3x3 convolutions, each with its ReLU.

    Args:
        folds, pads, relus: those of a plan: layer -> norm, layer -> padding layer, norm -> ReLU.

    Returns:
        The convolutions in order; empty for any other module.
    """
    if kind_of(block) is not nn.Sequential or not is_ours(vars(block).get("forward", is_ours)):
        return ()
    names = [f"{path}.{name}" for name in block._modules]
    modules: dict[str, Any] = dict(zip(names, block._modules.values(), strict=True))
    found, expected = [], list[str]()
    for layer in (name for name in names if name in folds):
        expected += [pads[layer]] if layer in pads else []
        expected += [layer, folds[layer], relus.get(folds[layer], "")]
        if not _is_3x3(modules[layer], modules.get(pads.get(layer, ""))):
            return ()
        found.append(layer)
    return tuple(found) if expected == names else ()


def _is_3x3(layer: nn.Module, pad: nn.Module | None) -> bool:
    """Whether ``layer`` is a 3x3 convolution over a map that is padded by one cell of zeros."""
    if not isinstance(layer, nn.Conv2d) or layer.kernel_size != (3, 3) or layer.padding_mode != "zeros":
        return False
    padding = layer.padding if pad is None else own_padding(pad, layer)
    single = layer.groups == 1 and layer.dilation == (1, 1) and layer.stride[0] == layer.stride[1]
    return single and padding == (1, 1)


@dataclass
class _Layer:
    """One folded convolution, and its output on an empty map."""

    weight: Tensor
    bias: Tensor
    stride: int
    matrix: Tensor
    """(9 * C, O): the weight for rows of nine cells"""
    table: Tensor
    """(R, O): the distinct rows of the empty map's output, after a row of zeros"""
    index: Tensor
    """(H + 2, W + 2) int64"""

    def __call__(self, value: Tensor) -> Tensor:
        """(B, O, H, W) of the whole map."""
        return F.relu_(F.conv2d(value, self.weight, self.bias, self.stride, 1))

    def reached(self, before: Rows, mask: Tensor) -> Rows:
        """The output of one sample, of which the cells in ``mask`` are computed."""
        width = mask.shape[3]
        cells = mask.view(-1).nonzero().view(-1)
        y, x = torch.div(cells, width, rounding_mode="floor"), cells % width
        span, fixed = before.index.shape[1], len(self.table)
        steps = torch.arange(3)
        corner = (y * span + x) * self.stride
        around = (steps[:, None] * span + steps).view(-1)
        index = self.index.clone()
        index.view(-1)[(y + 1) * (width + 2) + x + 1] = torch.arange(fixed, fixed + len(cells))
        table = self.table.new_empty(fixed + len(cells), self.table.shape[1])
        table[:fixed] = self.table
        rows = before.index.reshape(-1)
        for begin in range(0, len(cells), ROWS):
            near = rows[corner[begin : begin + ROWS, None] + around]
            given = before.table.index_select(0, near.view(-1)).view(len(near), -1)
            into = table[fixed + begin : fixed + begin + len(near)]
            torch.addmm(self.bias, given, self.matrix, out=into).relu_()
        return Rows(table, index, mask)


class ReachedMaps:
    """The maps that blocks returned in this forward: the next block knows their reached cells."""

    def __init__(self) -> None:
        self._known: list[tuple[Tensor, int, list[Rows | None], Tensor]] = []

    def add(self, value: Tensor, rows: list[Rows | None], empty: Tensor) -> None:
        """Keep that ``value`` consists of ``rows``; ``empty``: (1, C, H, W), the output on an empty map."""
        self._known.append((value, value._version, rows, empty))

    def find(self, value: Tensor) -> tuple[list[Rows | None], Tensor] | None:
        """What is known of ``value``; None where it is another map, or was written to."""
        for known, version, rows, empty in self._known:
            same = known.data_ptr() == value.data_ptr() and known.shape == value.shape
            if same and known.stride() == value.stride() and version == value._version:
                return rows, empty
        return None

    def clear(self) -> None:
        """Forget all maps: the forward is over."""
        self._known.clear()


class ReachedBlock:
    """Stands in for the forward of ``block``, a chain of ``folds``; ``maps`` is shared by all blocks."""

    def __init__(self, block: nn.Module, folds: Sequence[Fold], maps: ReachedMaps) -> None:
        self.block, self.folds, self.maps = block, list(folds), maps
        self.error: float | None = None
        """relative error (L2) of the first sample that was computed by reached cells"""
        self._layers: list[_Layer] = []
        self._made_from: tuple[Any, ...] = ()
        self._empty = torch.empty(0)

    def __call__(self, value: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, O, H', W'), in the memory format of ``value``."""
        plain = type(self.block).forward
        if self.is_off or not self._can_run(value):
            return plain(self.block, value)
        # a hook of the user on the block may write into what it is given, unseen
        hooked = has_foreign_code(self.block)
        known = None if hooked else self.maps.find(value)
        given, empty = known or (samples_of(value), None)
        masks = [None if rows is None else self._mask(rows) for rows in given]
        if all(mask is None for mask in masks):
            return plain(self.block, value)
        self._prepare(value[:1].shape, empty)
        found = [self._run(rows, value[n : n + 1]) for n, rows in enumerate(given)]
        maps = joined(found).contiguous(memory_format=_format(value))
        if self.error is None:
            number = next(n for n, mask in enumerate(masks) if mask is not None)
            one = slice(number, number + 1)
            self.error = relative_error(plain(self.block, value[one]), maps[one])
            if self.is_off:
                return plain(self.block, value)
        if not hooked:
            self.maps.add(maps, [rows if isinstance(rows, Rows) else None for rows in found], self._empty)
        return maps

    @property
    def is_off(self) -> bool:
        """Whether the first map differed by more than the tolerance, so that whole maps are computed."""
        return self.error is not None and not self.error <= TOLERANCE * len(self.folds)

    def _can_run(self, value: Tensor) -> bool:
        usual = value.dim() == 4 and value.dtype == torch.float32 and has_cpu_forms(value)
        if not usual or not len(value) or value.is_inference() or torch.is_inference_mode_enabled():
            return False
        return not torch.is_grad_enabled() and not autocast_is_on("cpu")

    def _mask(self, rows: Rows) -> Tensor | None:
        """The cells that the first layer has to compute; None where they are too many."""
        mask = F.max_pool2d(rows.mask, 3, _stride(self.folds[0]), 1)
        return mask if float(mask.mean()) <= DENSE else None

    def _run(self, rows: Rows | None, value: Tensor) -> Rows | Tensor:
        """The output of one sample, as rows, or as a map where many cells are reached."""
        for number, layer in enumerate(self._layers):
            mask = None if rows is None else F.max_pool2d(rows.mask, 3, layer.stride, 1)
            if rows is None or mask is None or float(mask.mean()) > DENSE:
                whole = value if number == 0 or rows is None else rows.dense()
                for left in self._layers[number:]:
                    whole = left(whole)
                return whole
            rows = layer.reached(rows, mask)
        assert rows is not None
        return rows

    def _prepare(self, shape: torch.Size, empty: Tensor | None) -> None:
        """Compute the layers on an ``empty`` map (None: zeros), unless this was done with the same weights
        and map."""
        folded = [fold.weights() for fold in self.folds]
        made_from = (*folded, shape, empty)
        if self._layers and _same(made_from, self._made_from):
            return
        self._layers, self._made_from = [], made_from
        empty = folded[0][0].new_zeros(shape) if empty is None else empty
        for fold, (weight, bias) in zip(self.folds, folded, strict=True):
            stride = _stride(fold)
            matrix = weight.permute(2, 3, 1, 0).reshape(-1, len(weight)).contiguous()
            layer = _Layer(weight, bias, stride, matrix, matrix, matrix)
            empty = layer(empty)
            layer.table, layer.index = distinct(empty)
            self._layers.append(layer)
        self._empty = empty


def _stride(fold: Fold) -> int:
    return int(fold.layer.stride[0])  # type: ignore[index]  # of a Conv2d


def _same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether the same tensors, and equal shapes, are in both."""
    pairs = list(zip(one, other, strict=False))
    return len(one) == len(other) and all(
        a == b if isinstance(a, torch.Size) else _identical(a, b) for a, b in pairs
    )


def _identical(one: Any, other: Any) -> bool:
    if isinstance(one, tuple) and isinstance(other, tuple):
        return all(map(_identical, one, other))
    return one is other


def _format(value: Tensor) -> torch.memory_format:
    is_last = not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
