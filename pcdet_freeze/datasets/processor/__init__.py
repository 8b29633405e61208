"""The last steps before a batch: range mask, shuffle, sampling, voxels; under OpenPCDet's names."""

from pcdet_freeze.datasets.processor.data_processor import DataProcessor, read_processors

__all__ = ["DataProcessor", "read_processors"]
