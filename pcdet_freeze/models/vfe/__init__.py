"""Voxel feature encoders: points of a voxel -> feature vector."""

from pcdet_freeze.models.vfe.dynamic_pillar_vfe import DynamicPFNLayer, DynamicPillarVFE
from pcdet_freeze.models.vfe.mean_vfe import DynamicMeanVFE, MeanVFE
from pcdet_freeze.models.vfe.pillar_vfe import PFNLayer, PillarVFE

__all__ = ["DynamicMeanVFE", "DynamicPFNLayer", "DynamicPillarVFE", "MeanVFE", "PFNLayer", "PillarVFE"]
