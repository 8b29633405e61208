"""OpenPCDet's BaseBEVBackbone without its concatenation (F5).

Its own forward concatenates the outputs of the deblocks, which copies all of them. Here each deblock writes
its channels of one channels-last map. The class is recognised by its attributes, in forks and under other
names too, and used only where its own forward and this one agree on the first batch and on a made-up one,
within the tolerance of F5. A deblock writes by the weights of its folded norm layer, as they are folded for
the frozen prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.prefix.fold_bn import Fold, is_foldable_norm, kind_of, out_channels
from pcdet_freeze.ops.maps.map_layout import JoinedMap, computes_here, map_of
from pcdet_freeze.ops.maps.map_writes import convolve_relu_into, spread_relu_into
from pcdet_freeze.utils.devices import autocast_is_on
from pcdet_freeze.utils.tensors import error_sums, relative_errors

READS, WRITES = "spatial_features", "spatial_features_2d"
CELLS = 32
"""rows and columns of the made-up map: the strides of all levels of OpenPCDet's configs divide it"""
Batch = dict[str, Any]


@dataclass(frozen=True)
class Deblock:
    """A convolution that is one matrix product, its norm layer and a ReLU."""

    layer: nn.Conv2d | nn.ConvTranspose2d
    norm: nn.Module

    @property
    def size(self) -> int:
        """Rows and columns of the output for each cell of the input."""
        return self.layer.stride[0]

    @property
    def fold(self) -> Fold | None:
        """By what the layer and its norm are computed at present; None where they run as written."""
        found = getattr(self.layer.__dict__.get("forward"), "__self__", None)
        return found if type(found) is Fold and found.norm is self.norm else None

    def write(self, maps: Tensor, fold: Fold, place: Tensor) -> None:
        """Write the output for ``maps`` into the rows of ``place``."""
        weight, bias = fold.weights()
        write = convolve_relu_into if isinstance(self.layer, nn.Conv2d) else spread_relu_into
        write(maps, weight, bias, place)


class JoinedMaps:
    """Forward of a BaseBEVBackbone whose deblocks write into one map.

    Reads:
        spatial_features: (B, C, H, W)
    Writes:
        spatial_features_2d: (B, sum of the deblocks' channels, H', W') in the channels_last memory format
    """

    does = "with its deblocks writing into one map"

    def __init__(self, module: nn.Module, deblocks: Sequence[Deblock]) -> None:
        self.module: Any = module
        self.deblocks = tuple(deblocks)

    def __call__(self, batch_dict: Batch, **kwargs: Any) -> Any:
        folds = [deblock.fold for deblock in self.deblocks]
        joined = self._join(batch_dict.get(READS), [fold for fold in folds if fold is not None])
        if joined is None:
            return type(self.module).forward(self.module, batch_dict, **kwargs)
        batch_dict[WRITES] = joined
        return batch_dict

    def _join(self, maps: Any, folds: Sequence[Fold]) -> Tensor | None:
        """The map of all deblocks; None where the module's own forward must run."""
        if len(folds) < len(self.deblocks) or not isinstance(maps, Tensor):
            return None
        if maps.requires_grad or not computes_here(maps):
            return None
        joined: JoinedMap | None = None
        widths = [out_channels(fold.layer) for fold in folds]
        for level, (deblock, fold) in enumerate(zip(self.deblocks, folds, strict=True)):
            maps = self.module.blocks[level](maps)
            if not isinstance(maps, Tensor) or not computes_here(maps):
                return None
            shape = (len(maps), maps.shape[2] * deblock.size, maps.shape[3] * deblock.size)
            joined = joined or JoinedMap(maps, shape, widths)
            if joined.shape != shape:
                return None
            deblock.write(maps, fold, joined.places[level])
        assert joined is not None
        whole = map_of(joined.rows, *joined.shape)
        last = list(self.module.deblocks)[len(self.deblocks) :]
        return last[0](whole) if last else whole

    @torch.no_grad()
    def probe_error(self) -> float:
        """Relative error on a made-up batch; infinite where the module's own forward writes another key."""
        batch = self._made_up()
        folds = [Fold(deblock.layer, deblock.norm) for deblock in self.deblocks]
        own, joined = dict(batch), self._join(batch[READS], folds)
        try:
            result = type(self.module).forward(self.module, own)
        except Exception:  # a forward of another class may raise anything
            return float("inf")
        same = result is own and set(own) == {READS, WRITES} and own[READS] is batch[READS]
        if not same or joined is None or not isinstance(own[WRITES], Tensor):
            return float("inf")
        return relative_errors([error_sums(own[WRITES], joined)])[0]

    def _made_up(self) -> Batch:
        first = next(m for m in self.module.blocks.modules() if isinstance(m, nn.Conv2d))
        draw = torch.Generator().manual_seed(0)
        maps = torch.randn(2, first.in_channels, CELLS, CELLS, generator=draw).to(first.weight)
        return {READS: maps.contiguous(memory_format=torch.channels_last)}


def joined_maps_form(module: nn.Module) -> JoinedMaps | None:
    """The quick form of a BaseBEVBackbone of OpenPCDet on a CPU; None for any other module."""
    if autocast_is_on("cpu") or any(p.device.type != "cpu" for p in module.parameters()):
        return None
    blocks, ups = module._modules.get("blocks"), module._modules.get("deblocks")
    if not isinstance(blocks, nn.ModuleList) or not isinstance(ups, nn.ModuleList):
        return None
    if not 1 < len(blocks) <= len(ups) <= len(blocks) + 1:
        return None
    if len(module._modules) > 2 or not any(isinstance(m, nn.Conv2d) for m in blocks.modules()):
        return None
    deblocks = [_deblock(up) for up in list(ups)[: len(blocks)]]
    known = [deblock for deblock in deblocks if deblock is not None]
    return JoinedMaps(module, known) if len(known) == len(deblocks) else None


def _deblock(module: nn.Module) -> Deblock | None:
    layers = list(module.children())
    if kind_of(module) is not nn.Sequential or len(layers) != 3:
        return None
    layer, norm, relu = layers
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or not _is_product(layer):
        return None
    return Deblock(layer, norm) if is_foldable_norm(norm) and type(relu) is nn.ReLU else None


def _is_product(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Whether each output reads one cell, of the layer's own class in torch."""
    if kind_of(layer) not in (nn.Conv2d, nn.ConvTranspose2d):
        return False
    size, plain = layer.stride[0], layer.groups == 1 and layer.padding == layer.output_padding == (0, 0)
    square = layer.kernel_size == layer.stride == (size, size) and layer.dilation == (1, 1)
    return plain and square and (size == 1 or kind_of(layer) is nn.ConvTranspose2d)
