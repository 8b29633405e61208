"""ONCE (Mao et al., NeurIPS 2021): sequences of frames of one roof LiDAR, of which some are labelled."""

from pcdet_freeze.datasets.once.dataset import OnceDataset
from pcdet_freeze.datasets.once.prepare import prepare_once

__all__ = ["OnceDataset", "prepare_once"]
