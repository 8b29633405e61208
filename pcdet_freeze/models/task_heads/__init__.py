"""Heads of further tasks: point segmentation, lanes.

A further task is a head here (registered with ``TASK_HEADS``, with ``get_loss`` and ``add_predictions``), its
label key among the ``labels`` of a data set (``datasets/template.py``) and a metric in ``TASK_METRICS``
(``evaluation/tasks.py``). ``tests/models/test_fourth_task.py`` is a complete example.
"""

from pcdet_freeze.models.task_heads.lane_head import LaneHead
from pcdet_freeze.models.task_heads.segment_head import SegmentHead

__all__ = ["LaneHead", "SegmentHead"]
