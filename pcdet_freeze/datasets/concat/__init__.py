"""ConcatDataset: several sets with different labels, class names and sensors as one."""

from pcdet_freeze.datasets.concat.dataset import ConcatDataset

__all__ = ["ConcatDataset"]
