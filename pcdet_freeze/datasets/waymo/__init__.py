"""Waymo Open Dataset, as OpenPCDet's preparation leaves it: a folder of arrays and infos a segment."""

from pcdet_freeze.datasets.waymo.dataset import WaymoDataset
from pcdet_freeze.datasets.waymo.prepare import prepare_waymo

__all__ = ["WaymoDataset", "prepare_waymo"]
