"""SECONDNet: sparse voxels, a 2D backbone, anchors (Yan et al., Sensors 2018, 18(10), 3337)."""

from __future__ import annotations

from pcdet_freeze.models.detectors.detector3d_template import Detector3DTemplate
from pcdet_freeze.models.registry import DETECTORS


@DETECTORS.register
class SECONDNet(Detector3DTemplate):
    """vfe -> backbone_3d -> map_to_bev_module -> backbone_2d -> dense_head and other heads of the config."""
