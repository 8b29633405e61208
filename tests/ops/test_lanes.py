"""Lane maps and polylines use the same coordinate frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcdet_freeze.ops.lanes import draw_lines, line_points

LIMITS = [-10.0, -10.0, -3.0, 10.0, 10.0, 1.0]
INSIDE = st.floats(-8.0, 8.0)


def test_a_line_along_x_fills_its_row_of_cells() -> None:
    lane_map = draw_lines([np.array([[-10, 0.25], [10, 0.25]])], LIMITS, (40, 40))
    assert (lane_map[20] == 0).all() and (np.delete(lane_map, 20, axis=0) == 255).all()


def test_a_width_of_three_cells_takes_three_rows() -> None:
    lane_map = draw_lines([np.array([[-10, 0.25, 9.0], [10, 0.25, 9.0]])], LIMITS, (40, 40), width=1.2)
    assert np.unique(np.nonzero(lane_map == 0)[0]).tolist() == [19, 20, 21]


def test_lines_are_numbered_in_their_order_and_the_later_lies_above() -> None:
    cross = [np.array([[-5, 0.1], [5, 0.1]]), np.array([[0.1, -5], [0.1, 5]])]
    lane_map = draw_lines(cross, LIMITS, (40, 40))
    assert lane_map[20, 12] == 0 and lane_map[12, 20] == 1 and lane_map[20, 20] == 1


def test_points_outside_the_range_are_dropped() -> None:
    assert (draw_lines([np.array([[11, 11], [30, 11]])], LIMITS, (40, 40)) == 255).all()
    assert (draw_lines([], LIMITS, (40, 40)) == 255).all()


def test_more_lines_than_numbers_are_an_error() -> None:
    with pytest.raises(ValueError, match="at most 255 lines; got 256"):
        draw_lines([np.zeros((2, 2))] * 256, LIMITS, (40, 40))


ROWS = st.integers(-15, 15)


@pytest.mark.parametrize("edge", [0.5, 0.32, 0.3, 0.7])
@settings(max_examples=25)
@given(border=ROWS, first=ROWS, length=st.integers(1, 30), width=st.sampled_from([0.0, 0.2]))
def test_a_line_on_a_border_takes_the_cells_above_it_whichever_way_it_is_drawn(
    edge: float, border: int, first: int, length: int, width: float
) -> None:
    limits = [-20 * edge, -20 * edge, -3.0, 20 * edge, 20 * edge, 1.0]
    line = np.array([[first, border], [first + length, border]]) * edge
    expected = np.full((40, 40), 255)
    expected[border + 20, first + 20 : first + length + 20] = 0
    for way in (line, line[::-1]):
        along_x = draw_lines([way], limits, (40, 40), width * edge)
        along_y = draw_lines([way[:, ::-1]], limits, (40, 40), width * edge)
        assert np.array_equal(along_x, expected) and np.array_equal(along_y, expected.T)


@pytest.mark.parametrize("y", [0.0, 0.25, 0.1, 0.4999, 0.4921])
def test_a_line_of_two_cells_width_takes_two_rows_wherever_it_lies(y: float) -> None:
    lane_map = draw_lines([np.array([[-10, y], [10, y]])], LIMITS, (40, 40), width=1.0)
    rows = np.unique(np.nonzero(lane_map == 0)[0])
    assert len(rows) == 2 and (lane_map[rows] == 0).all()


@given(a=st.tuples(INSIDE, INSIDE), b=st.tuples(INSIDE, INSIDE), width=st.sampled_from([0.0, 0.5, 1.5]))
def test_the_points_read_from_a_drawn_line_lie_on_it_to_half_a_cell(
    a: tuple[float, float], b: tuple[float, float], width: float
) -> None:
    drawn = draw_lines([np.array([a, b])], LIMITS, (40, 40), width)
    for points in line_points(drawn, LIMITS):
        assert _away(points, np.array(a), np.array(b)).max() <= max(width, 0.5) / 2 + 1e-6


def _away(points: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distance of points (M, 2) from the segment a to b, metres."""
    part = np.clip((points - a) @ (b - a) / max(float((b - a) @ (b - a)), 1e-12), 0, 1)
    return np.asarray(np.linalg.norm(points - (a + part[:, None] * (b - a)), axis=1))
