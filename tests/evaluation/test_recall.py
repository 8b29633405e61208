"""Recall over batches."""

from __future__ import annotations

from pcdet_freeze.evaluation.recall import recall_summary


def test_recall_is_what_was_found_over_all_batches_by_all_labels():
    batches = [{"gt": 4, "rcnn_0.3": 4, "rcnn_0.7": 1}, {}, {"gt": 6, "rcnn_0.3": 4, "rcnn_0.7": 1}]
    assert recall_summary(batches) == {"recall/rcnn_0.3": 0.8, "recall/rcnn_0.7": 0.2}


def test_without_labels_recall_is_zero():
    assert recall_summary([{"gt": 0, "rcnn_0.3": 0}]) == {"recall/rcnn_0.3": 0}
    assert recall_summary([]) == {}
