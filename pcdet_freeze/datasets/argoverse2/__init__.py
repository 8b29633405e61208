"""Argoverse 2 Sensor: single sweeps with boxes, ground flags and painted lane lines."""

from pcdet_freeze.datasets.argoverse2.dataset import Argoverse2Sweeps

__all__ = ["Argoverse2Sweeps"]
