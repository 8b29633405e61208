"""Heads of further tasks: point segmentation, lanes."""

from pcdet_freeze.models.task_heads.lane_head import LaneHead
from pcdet_freeze.models.task_heads.segment_head import SegmentHead

__all__ = ["LaneHead", "SegmentHead"]
