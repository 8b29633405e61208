"""A folder of your own: points, boxes, point labels and lane maps as files, in OpenPCDet's custom layout."""

from pcdet_freeze.datasets.custom.dataset import CustomDataset
from pcdet_freeze.datasets.custom.prepare import prepare_custom

__all__ = ["CustomDataset", "prepare_custom"]
