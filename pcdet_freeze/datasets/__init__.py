"""Data sets, augmentation and processing: from files or simulated scenes to batches."""

from pcdet_freeze.datasets.loader import EpochSampler, build_dataloader, build_dataset, data_faults
from pcdet_freeze.datasets.registry import AUGMENTORS, DATASETS, PROCESSORS
from pcdet_freeze.datasets.template import DatasetTemplate

__all__ = [
    "AUGMENTORS",
    "DATASETS",
    "PROCESSORS",
    "DatasetTemplate",
    "EpochSampler",
    "build_dataloader",
    "build_dataset",
    "data_faults",
]
