"""The individual steps of the KITTI evaluation."""

from __future__ import annotations

import numpy as np
import pytest
from kitti_toys import car, dont_care, drives, frame

from pcdet_freeze.evaluation.kitti.matching import count_at, recall_thresholds, true_positive_scores
from pcdet_freeze.evaluation.kitti.overlaps import box_overlaps, dont_care_cover, find_pairs, image_overlap
from pcdet_freeze.evaluation.kitti.tables import read_detections, read_labels

ONE_LABEL = {"label_ignored": np.array([False]), "label_alpha": np.zeros(1)}


def rivals(overlap, score, ignored=(False, False), threshold=0.0):
    """Counts for one label and two candidates; the second has the opposite heading (similarity 0)."""
    true, false, similarity = count_at(
        thresholds=np.array([threshold]),
        first=np.array([0, 2]),
        candidate=np.array([0, 1]),
        overlap=np.array(overlap),
        ignored=np.array(ignored),
        score=np.array(score),
        excused=np.zeros(2, dtype=bool),
        alpha=np.array([0.0, np.pi]),
        **ONE_LABEL,
    )
    return true[0], false[0], similarity[0]


def test_the_candidate_that_overlaps_most_is_matched_and_the_other_is_false():
    assert rivals(overlap=[0.9, 0.8], score=[0.3, 0.7]) == (1, 1, 1)
    assert rivals(overlap=[0.8, 0.9], score=[0.7, 0.3]) == (1, 1, 0)


def test_a_detection_below_the_threshold_is_discarded():
    assert rivals(overlap=[0.8, 0.9], score=[0.7, 0.3], threshold=0.5) == (1, 0, 1)
    assert rivals(overlap=[0.8, 0.9], score=[0.7, 0.3], threshold=0.7) == (1, 0, 1)


def test_an_ignored_detection_is_matched_only_if_no_other_is_left():
    assert rivals(overlap=[0.8, 0.9], score=[0.7, 0.9], ignored=[False, True]) == (1, 0, 1)
    assert rivals(overlap=[0.9, 0.8], score=[0.9, 0.7], ignored=[True, False]) == (1, 0, 0)
    assert rivals(overlap=[0.9, 0.8], score=[0.9, 0.7], ignored=[True, True]) == (0, 0, 0)


def test_thresholds_come_from_each_labels_best_scored_candidate():
    scores = true_positive_scores(
        first=np.array([0, 2, 3, 3]),
        candidate=np.array([0, 1, 1]),
        label_ignored=np.array([False, False, False]),
        ignored=np.array([False, False]),
        score=np.array([0.2, 0.8]),
    )
    # the first label takes 0.8, so nothing is left for the second; the third never had any
    assert scores.tolist() == [0.8]


def test_every_score_is_a_threshold_where_there_are_few():
    assert recall_thresholds(np.array([0.9, 0.5, 0.1]), 3).tolist() == [0.9, 0.5, 0.1]


@pytest.mark.parametrize("labels", [41, 82, 400, 1234])
def test_there_are_never_more_thresholds_than_recall_points(labels):
    scores = np.linspace(1, 0, labels)
    thresholds = recall_thresholds(scores, labels)
    assert len(thresholds) == 41
    assert thresholds[-1] == scores[-1]
    # each is the score of the label that brings recall nearest to k / 40
    recall = (np.searchsorted(-scores, -thresholds) + 1) / labels
    np.testing.assert_allclose(recall, np.arange(41) / 40, rtol=0, atol=1 / labels + 1e-9)


def test_image_boxes_that_share_half_their_width_overlap_by_a_third():
    a, b = np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 15, 10], [10.0, 0, 20, 10], [0.0, 0, 10, 10]])
    np.testing.assert_allclose(image_overlap(a, b), [[1 / 3, 0, 1]])


def test_rotation_y_turns_a_box_clockwise_seen_from_above():
    # 2 m along (cos a, -sin a) of x and z: there the two boxes, both 4 m long, share 2 of 6 m
    a = 0.7
    ahead = [2 * np.cos(a), 1.6, 20 - 2 * np.sin(a)]
    labels = read_labels([frame(car(rotation_y=a))])
    found = read_detections([frame(car(rotation_y=a, location=ahead))])
    bev, volume = box_overlaps(labels, found, slice(None), slice(None))
    np.testing.assert_allclose(bev, 1 / 3, atol=1e-6)
    np.testing.assert_allclose(volume, 1 / 3, atol=1e-6)


def test_objects_of_different_frames_are_never_a_pair():
    labels = read_labels([frame(car()), frame(), frame(car(), car(x=30.0, left=500.0))])
    found = read_detections([frame(), frame(car()), frame(car(x=30.0, left=500.0), car())])
    pairs = find_pairs(labels, found)
    assert pairs.label.tolist() == [1, 2]
    assert pairs.detection.tolist() == [2, 1]


def test_dont_care_cover_is_the_greatest_covered_part_of_the_detection():
    labels = read_labels([frame(dont_care(left=130.0), dont_care(left=190.0)), frame(car())])
    found = read_detections(drives(car(left=100.0), car(left=900.0), frames=2))
    np.testing.assert_allclose(dont_care_cover(labels, found), [0.7, 0, 0, 0])
