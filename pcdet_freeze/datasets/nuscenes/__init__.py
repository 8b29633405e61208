"""nuScenes: ten sweeps a frame, boxes with velocity, point labels of lidarseg, dividers of the map."""

from pcdet_freeze.datasets.nuscenes.dataset import NuScenesDataset
from pcdet_freeze.datasets.nuscenes.prepare import prepare_nuscenes
from pcdet_freeze.datasets.nuscenes.results import write_submission

__all__ = ["NuScenesDataset", "prepare_nuscenes", "write_submission"]
