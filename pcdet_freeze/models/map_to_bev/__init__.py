"""Sparse features -> a dense bird's-eye-view map."""

from pcdet_freeze.models.map_to_bev.height_compression import HeightCompression
from pcdet_freeze.models.map_to_bev.pointpillar_scatter import PointPillarScatter

__all__ = ["HeightCompression", "PointPillarScatter"]
