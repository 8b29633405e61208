"""Poses and lane boundaries of Argoverse 2, without tables."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pcdet_freeze.datasets.argoverse2.boundaries import lines_around
from pcdet_freeze.datasets.argoverse2.poses import Pose, headings, rotation_matrices

LIMITS = np.array([-20, -20, -2, 20, 20, 3], np.float32)
HERE = Pose(np.eye(3), np.zeros(3))


@given(st.floats(-3.1, 3.1))
def test_the_heading_of_a_turn_about_z_is_its_angle(angle: float) -> None:
    turn = np.array([[np.cos(angle / 2), 0, 0, np.sin(angle / 2)]])
    assert headings(turn)[0] == pytest.approx(angle)
    assert rotation_matrices(turn)[0] @ [1, 0, 0] == pytest.approx([np.cos(angle), np.sin(angle), 0])


def test_a_pose_maps_points_ahead_of_the_vehicle_to_its_x_axis() -> None:
    looks_north = Pose(
        rotation_matrices(np.array([[np.sqrt(0.5), 0, 0, np.sqrt(0.5)]]))[0], np.array([5, 5, 1.0])
    )
    np.testing.assert_allclose(looks_north.to_inner(np.array([[5, 8, 1.0]])), [[3, 0, 0]], atol=1e-12)


def line(*points: tuple[float, float]) -> np.ndarray:
    return np.array([(*point, 0.0) for point in points])


def test_consecutive_pieces_are_one_line_for_any_direction() -> None:
    pieces = [line((0, 1), (5, 1)), line((12, 1), (5.1, 1)), line((-9, 1), (0, 1))]
    (whole,) = lines_around(pieces, HERE, LIMITS)
    assert sorted(whole[[0, -1], 0].tolist()) == [-9, 12]
    assert (np.diff(whole[:, 0]) > 0).all() or (np.diff(whole[:, 0]) < 0).all()


def test_a_hairpin_and_a_fork_are_not_one_line() -> None:
    pieces = [line((0, 2), (10, 0)), line((10, 0), (0, -2)), line((10, 0), (18, 0))]
    assert len(lines_around(pieces, HERE, LIMITS)) == 2


def test_lines_in_range_are_ordered_from_left_to_right() -> None:
    pieces = [
        line((-5, -3), (5, -3)),
        line((-5, 4), (5, 4)),
        line((0, 30), (5, 30)),
        line((19.5, 0), (30, 0)),
    ]
    assert [part[0, 1] for part in lines_around(pieces, HERE, LIMITS)] == [4, -3]


def test_a_piece_of_one_point_is_no_line() -> None:
    assert lines_around([line((0, 0))], HERE, LIMITS) == []
