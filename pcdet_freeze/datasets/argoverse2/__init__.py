"""Argoverse 2 Sensor: boxes, ground and lane lines, of single sweeps or of whole logs."""

from pcdet_freeze.datasets.argoverse2.dataset import Argoverse2Sweeps
from pcdet_freeze.datasets.argoverse2.logs import Argoverse2Dataset
from pcdet_freeze.datasets.argoverse2.prepare import prepare_argoverse2

__all__ = ["Argoverse2Dataset", "Argoverse2Sweeps", "prepare_argoverse2"]
