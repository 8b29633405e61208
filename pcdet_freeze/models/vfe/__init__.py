"""Voxel feature encoders: points of a voxel -> one feature vector."""

from pcdet_freeze.models.vfe.pillar_vfe import PFNLayer, PillarVFE

__all__ = ["PFNLayer", "PillarVFE"]
