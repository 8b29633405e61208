"""OpenPCDet's PointPillarScatter and HeightCompression without their copies (F5).

Their own forwards copy the map so that channels come first, and the convolutions of a frozen prefix copy it
back. These write the features into a channels-last map at once. The classes are recognised by their
attributes, in forks and under other names too, and used only where their own forward and this one agree to
the bit on a made-up batch, and on the first one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.ops.maps.map_layout import map_of
from pcdet_freeze.ops.sparse import bev_map, dense
from pcdet_freeze.utils.tensors import same_bits

MAP = "spatial_features"
Batch = dict[str, Any]


@dataclass
class SparseVolume:
    """A sparse tensor as spconv's, of a made-up batch."""

    features: Tensor
    indices: Tensor
    spatial_shape: list[int]
    batch_size: int

    def dense(self) -> Tensor:
        """(B, C, Z, Y, X)."""
        return dense(self)


class _MapForm:
    """A quick form of ``module``; where the batch is not as expected, its own forward runs."""

    does = "writing a channels-last map"

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    def __call__(self, batch_dict: Batch, **kwargs: Any) -> Any:
        written = self.write(batch_dict)
        if written is None:
            return type(self.module).forward(self.module, batch_dict, **kwargs)
        batch_dict.update(written)
        return batch_dict

    def write(self, batch_dict: Batch) -> Batch | None:
        """The keys that the module writes; None where its own forward must run."""
        raise NotImplementedError(f"{type(self).__name__} must define write")

    def made_up(self) -> Batch:
        """A batch of what the module reads."""
        raise NotImplementedError(f"{type(self).__name__} must define made_up")

    @torch.no_grad()
    def probe_error(self) -> float:
        """0 if the module's own forward writes the same bits, and nothing else, for a made-up batch."""
        batch = self.made_up()
        own, expected = dict(batch), self.write(dict(batch))
        try:
            result = type(self.module).forward(self.module, own)
        except Exception:  # a forward of another class may raise anything
            return float("inf")
        if expected is None or result is not own or set(own) != {*batch, *expected}:
            return float("inf")
        equal = same_bits(own[MAP], expected[MAP]) and all(own[key] is batch[key] for key in batch)
        others = all(own[key] == expected[key] for key in expected if key != MAP)
        return 0.0 if equal and others else float("inf")


class PillarMap(_MapForm):
    """Forward of a PointPillarScatter.

    Reads:
        pillar_features: (M, C)
        voxel_coords: (M, 4) [sample, z, y, x], in cells
    Writes:
        spatial_features: (B, C, ny, nx) in the channels_last memory format
    """

    def write(self, batch_dict: Batch) -> Batch | None:
        features, coords = batch_dict.get("pillar_features"), batch_dict.get("voxel_coords")
        if not isinstance(features, Tensor) or not isinstance(coords, Tensor) or features.requires_grad:
            return None
        if features.dim() != 2 or not len(features) or features.shape[1] != self.module.num_bev_features:
            return None
        height, width = int(self.module.ny), int(self.module.nx)
        samples = int(coords[:, 0].max()) + 1  # as in OpenPCDet, which waits for the device here too
        place = coords.long()
        cell = (place[:, 0] * height + place[:, 2]) * width + place[:, 3]
        canvas = features.new_zeros(samples * height * width, features.shape[1])
        canvas[cell] = features
        return {MAP: map_of(canvas, samples, height, width)}

    def made_up(self) -> Batch:
        height, width, draw = int(self.module.ny), int(self.module.nx), torch.Generator().manual_seed(0)
        cells = torch.randperm(2 * height * width, generator=draw)[:50]
        zeros = torch.zeros_like(cells)
        sample, row, column = cells // (height * width), cells // width % height, cells % width
        features = torch.randn(len(cells), self.module.num_bev_features, generator=draw)
        return {
            "pillar_features": features,
            "voxel_coords": torch.stack([sample, zeros, row, column], dim=1),
            "batch_size": int(sample.max()) + 1,
        }


class HeightMap(_MapForm):
    """Forward of a HeightCompression.

    Reads:
        encoded_spconv_tensor: sparse tensor with C channels and Z x H x W cells
        encoded_spconv_tensor_stride: voxels per cell
    Writes:
        spatial_features: (B, C * Z, H, W) in the channels_last memory format
        spatial_features_stride: the same stride
    """

    def write(self, batch_dict: Batch) -> Batch | None:
        volume, stride = batch_dict.get("encoded_spconv_tensor"), "encoded_spconv_tensor_stride"
        features = getattr(volume, "features", None)
        if not isinstance(features, Tensor) or features.requires_grad or stride not in batch_dict:
            return None
        return {MAP: bev_map(volume), f"{MAP}_stride": batch_dict[stride]}

    def made_up(self) -> Batch:
        draw, shape = torch.Generator().manual_seed(0), [2, 6, 5]
        cells = torch.randperm(2 * 2 * 6 * 5, generator=draw)[:30]
        indices = torch.stack([cells // 60, cells // 30 % 2, cells // 5 % 6, cells % 5], dim=1)
        channels = max(1, int(self.module.num_bev_features) // 2)
        features = torch.randn(len(cells), channels, generator=draw)
        volume = SparseVolume(features, indices.int(), shape, 2)
        return {"encoded_spconv_tensor": volume, "encoded_spconv_tensor_stride": 8, "batch_size": 2}


def bev_map_form(module: nn.Module) -> _MapForm | None:
    """The quick form of a PointPillarScatter or HeightCompression of OpenPCDet; None for any other module."""
    if module._parameters or module._buffers or module._modules or not hasattr(module, "model_cfg"):
        return None
    if not isinstance(getattr(module, "num_bev_features", None), int):
        return None
    sizes = [getattr(module, name, None) for name in ("nx", "ny", "nz")]
    if all(size is None for size in sizes):
        return HeightMap(module)
    whole = all(isinstance(size, int) or getattr(size, "dtype", None) is not None for size in sizes)
    return PillarMap(module) if whole and sizes[2] == 1 else None
