"""Random changes of training samples, under OpenPCDet's names; labels and maps move with the points."""

from pcdet_freeze.datasets.augmentor.data_augmentor import DataAugmentor, read_augmentors

__all__ = ["DataAugmentor", "read_augmentors"]
