"""VoxelResBackBone8x: SECOND's encoder with residual blocks (CBGS, arXiv:1908.09492, section 3.2)."""

from __future__ import annotations

from torch import nn

from pcdet_freeze.models.backbones_3d.sparse_backbone import SparseBackbone, norm
from pcdet_freeze.models.registry import BACKBONES_3D
from pcdet_freeze.ops import sparse
from pcdet_freeze.ops.norm import batch_norm


class SparseBasicBlock(nn.Module):
    """Two submanifold convolutions with an identity shortcut (arXiv:1512.03385, figure 2)."""

    takes_sparse = True

    def __init__(self, width: int, key: str) -> None:
        super().__init__()
        self.conv1 = sparse.submanifold_conv(width, width, 3, key, bias=True)
        self.bn1 = norm(width)
        self.conv2 = sparse.submanifold_conv(width, width, 3, key, bias=True)
        self.bn2 = norm(width)

    def forward(self, x: sparse.SparseTensor) -> sparse.SparseTensor:
        """Sparse tensor with ``width`` channels -> sparse tensor with the same sites and channels."""
        inner = sparse.on_features(self.conv1(x), lambda rows: batch_norm(self.bn1, rows).relu())
        inner = self.conv2(inner)
        return sparse.on_features(inner, lambda rows: (batch_norm(self.bn2, rows) + x.features).relu())


@BACKBONES_3D.register
class VoxelResBackBone8x(SparseBackbone):
    """Two residual blocks at each level."""

    widths = (16, 32, 64, 128)

    def same_sites(self, width: int, level: int) -> list[nn.Module]:
        return [SparseBasicBlock(width, f"subm{level}") for _ in range(2)]
