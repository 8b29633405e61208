"""VoxelBackBone8x, the sparse middle encoder of SECOND (Sensors 2018, 18(10), 3337, section 3.1.2)."""

from __future__ import annotations

from torch import nn

from pcdet_freeze.models.backbones_3d.sparse_backbone import SparseBackbone, norm_and_relu
from pcdet_freeze.models.registry import BACKBONES_3D
from pcdet_freeze.ops import sparse


@BACKBONES_3D.register
class VoxelBackBone8x(SparseBackbone):
    """One submanifold convolution at full resolution, two at each lower level."""

    widths = (16, 32, 64, 64)

    def same_sites(self, width: int, level: int) -> list[nn.Module]:
        count = 1 if level == 1 else 2
        return [
            sparse.SparseSequential(
                sparse.submanifold_conv(width, width, 3, f"subm{level}"), *norm_and_relu(width)
            )
            for _ in range(count)
        ]
