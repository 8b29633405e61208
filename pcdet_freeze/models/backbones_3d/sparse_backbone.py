"""Base of the sparse backbones: a stem, four levels, and a final convolution that halves the height."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from torch import nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.ops import sparse
from pcdet_freeze.utils.settings.rules import whole

OUT_KERNEL, OUT_STRIDE = (3, 1, 1), (2, 1, 1)
HALVE = (2, 2, 2)


@dataclass(frozen=True)
class SparseBackboneSettings:
    """``MODEL.BACKBONE_3D`` of VoxelBackBone8x and VoxelResBackBone8x."""

    lower_keys: ClassVar[bool] = True
    last_pad: Annotated[int, whole(0, 100)] = 0
    """padding in height of the last convolution, in cells"""


class SparseBackbone(nn.Module):
    """Voxels -> sparse features at 1/8 of the grid in y and x (SECOND, Sensors 2018, 18(10), 3337, 3.1.2).

    A subclass defines the layers of a level after its strided convolution.
    """

    Settings = SparseBackboneSettings
    reads = ("voxel_features", "voxel_coords", "batch_size")
    writes = (
        "encoded_spconv_tensor",
        "encoded_spconv_tensor_stride",
        "multi_scale_3d_features",
        "multi_scale_3d_strides",
    )
    reads_train: tuple[str, ...] = ()
    widths: ClassVar[tuple[int, int, int, int]]
    """channels of the four levels"""
    width_out: ClassVar[int] = 128

    def __init__(self, settings: SparseBackboneSettings, context: BuildContext) -> None:
        super().__init__()
        where = f"MODEL.BACKBONE_3D ({type(self).__name__})"
        context.need_voxels(where)
        width, height, depth = context.grid_size
        # one layer more than the grid has, so that 41 layers are reduced to 2, as in SECOND
        self.sparse_shape = (depth + 1, height, width)
        channels, first = context.features_of("voxel_features", where).channels, self.widths[0]
        stem = sparse.submanifold_conv(channels, first, 3, "subm1")
        self.conv_input = sparse.SparseSequential(stem, *norm_and_relu(first))
        self.conv1 = sparse.SparseSequential(*self.same_sites(first, 1))
        shape = self.sparse_shape
        for level, height_pad in ((2, 1), (3, 1), (4, 0)):
            padding = (height_pad, 1, 1)
            self.add_module(f"conv{level}", self._level(level, padding))
            shape = sparse.conv_output_shape(shape, (3, 3, 3), HALVE, padding)
        last_padding = (settings.last_pad, 0, 0)
        last = sparse.strided_conv(
            self.widths[3], self.width_out, OUT_KERNEL, OUT_STRIDE, last_padding, "spconv_down2"
        )
        self.conv_out = sparse.SparseSequential(last, *norm_and_relu(self.width_out))
        shape = sparse.conv_output_shape(shape, OUT_KERNEL, OUT_STRIDE, last_padding)
        if min(shape) < 1:
            raise ConfigError(
                f"{where}: the grid is too small, the output has {shape} cells (z, y, x). Use more voxels."
            )
        self.num_point_features = self.width_out
        self.backbone_channels = {f"x_conv{n}": wide for n, wide in enumerate(self.widths, start=1)}
        context.features["encoded_spconv_tensor"] = Features(self.width_out, shape[1], shape[2], shape[0])

    def same_sites(self, width: int, level: int) -> list[nn.Module]:
        """Layers of ``level`` (1 to 4) on the same active sites."""
        raise NotImplementedError(f"{type(self).__name__} must implement same_sites")

    def _level(self, level: int, padding: sparse.Triple) -> nn.Module:
        before, width = self.widths[level - 2], self.widths[level - 1]
        down = sparse.strided_conv(before, width, (3, 3, 3), HALVE, padding, f"spconv{level}")
        opening = sparse.SparseSequential(down, *norm_and_relu(width))
        return sparse.SparseSequential(opening, *self.same_sites(width, level))

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        """Encode voxels.

        Reads:
            voxel_features: (M, C)
            voxel_coords: (M, 4) [sample, z, y, x], in cells
            batch_size: number of samples, including empty ones
        Writes (sparse tensors):
            encoded_spconv_tensor: 128 channels, at 1/8 of the grid in y and x
            encoded_spconv_tensor_stride: 8
            multi_scale_3d_features: x_conv1 to x_conv4, at 1/1, 1/2, 1/4, 1/8
            multi_scale_3d_strides: the same keys -> 1, 2, 4, 8
        """
        x = sparse.sparse_tensor(
            batch_dict["voxel_features"],
            batch_dict["voxel_coords"],
            self.sparse_shape,
            int(batch_dict["batch_size"]),
        )
        x, levels = self.conv_input(x), {}
        for level in (1, 2, 3, 4):
            x = levels[f"x_conv{level}"] = getattr(self, f"conv{level}")(x)
        batch_dict["encoded_spconv_tensor"] = self.conv_out(x)
        batch_dict["encoded_spconv_tensor_stride"] = 8
        batch_dict["multi_scale_3d_features"] = levels
        batch_dict["multi_scale_3d_strides"] = {key: 2**i for i, key in enumerate(levels)}
        return batch_dict


def norm(width: int) -> nn.BatchNorm1d:
    """Batch norm over the active sites."""
    return nn.BatchNorm1d(width, eps=1e-3, momentum=0.01)


def norm_and_relu(width: int) -> tuple[nn.Module, nn.Module]:
    """Batch norm and ReLU after a sparse convolution."""
    return norm(width), nn.ReLU()
