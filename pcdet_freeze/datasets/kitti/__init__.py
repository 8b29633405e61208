"""KITTI 3D object detection: calibration, labels, info files, data set."""

from pcdet_freeze.datasets.kitti.dataset import KittiDataset
from pcdet_freeze.datasets.kitti.prepare import prepare_kitti

__all__ = ["KittiDataset", "prepare_kitti"]
