"""Detectors: a sequence of modules, their losses and their predictions."""

from pcdet_freeze.models.detectors.centerpoint import CenterPoint
from pcdet_freeze.models.detectors.detector3d_template import Detector3DTemplate
from pcdet_freeze.models.detectors.pointpillar import PointPillar
from pcdet_freeze.models.detectors.second_net import SECONDNet

__all__ = ["CenterPoint", "Detector3DTemplate", "PointPillar", "SECONDNet"]
