"""PointPillar: pillars, a 2D backbone, one anchor head (Lang et al., 2019, arXiv:1812.05784)."""

from __future__ import annotations

from pcdet_freeze.models.detectors.detector3d_template import Detector3DTemplate
from pcdet_freeze.models.registry import DETECTORS


@DETECTORS.register
class PointPillar(Detector3DTemplate):
    """vfe -> map_to_bev_module -> backbone_2d -> dense_head and other heads of the config."""
