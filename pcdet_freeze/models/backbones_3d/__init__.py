"""Backbones on sparse voxels. spconv is imported when one of them is built."""

from pcdet_freeze.models.backbones_3d.voxel_backbone import VoxelBackBone8x
from pcdet_freeze.models.backbones_3d.voxel_res_backbone import VoxelResBackBone8x

__all__ = ["VoxelBackBone8x", "VoxelResBackBone8x"]
