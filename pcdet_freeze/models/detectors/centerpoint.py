"""CenterPoint: voxels or pillars, a 2D backbone, a CenterHead (Yin et al., CVPR 2021, arXiv:2006.11275)."""

from __future__ import annotations

from pcdet_freeze.models.detectors.detector3d_template import Detector3DTemplate
from pcdet_freeze.models.post_processing import RecallSettings, count_detections
from pcdet_freeze.models.registry import DETECTORS


@DETECTORS.register
class CenterPoint(Detector3DTemplate):
    """vfe -> (backbone_3d) -> map_to_bev_module -> backbone_2d -> dense_head, which runs NMS itself."""

    PostProcessing = RecallSettings
    predictions = "final_box_dicts"
    detect = staticmethod(count_detections)
