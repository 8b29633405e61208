"""SemanticKITTI: a class for each point; 19 classes, or 25 with moving ones."""

from pcdet_freeze.datasets.semantic_kitti.dataset import SemanticKittiDataset
from pcdet_freeze.datasets.semantic_kitti.prepare import prepare_semantic_kitti

__all__ = ["SemanticKittiDataset", "prepare_semantic_kitti"]
