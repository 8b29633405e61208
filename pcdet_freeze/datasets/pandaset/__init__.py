"""PandaSet: boxes, a class for each point, and painted lane lines, on the same sweeps."""

from pcdet_freeze.datasets.pandaset.dataset import PandaSetDataset
from pcdet_freeze.datasets.pandaset.prepare import prepare_pandaset

__all__ = ["PandaSetDataset", "prepare_pandaset"]
