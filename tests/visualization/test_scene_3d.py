"""Arrays of a 3D view: colours of points, lines of boxes, text, ground."""

from __future__ import annotations

import numpy as np
import pytest

from pcdet_freeze.visualization.bev import CHANGED_COLOR, KEPT_COLOR, Style, color_of
from pcdet_freeze.visualization.scene import Part, Scene
from pcdet_freeze.visualization.scene_3d import (
    LABEL_COLOR,
    VIRIDIS,
    PointColors,
    box_groups,
    box_lines,
    box_text,
    cell_picture,
    classes_in,
    drawn_points,
    ground_of,
    legend,
    point_colors,
    quaternions,
    rgb,
    ticks_of,
)

STYLE = Style([0, -20, -3, 40, 20, 1], ["Car", "Pedestrian"], ["road", "<wall>"])
POINTS = np.array([[1, 1, 0, 0.9], [2, 2, 1, 0.1], [3, -5, 2, 0.5]], np.float32)
BOXES = np.array([[10, 5, 0, 4, 2, 1.5, 0], [20, -5, 0, 4, 2, 1.5, np.pi / 2]], np.float32)
SCENE = Scene(POINTS, BOXES, np.array([1, 2]), np.array([0.9, 0.5]))
ALL = np.arange(3)


def test_a_cloud_beyond_the_limit_is_drawn_as_the_same_random_subset_each_time() -> None:
    points = np.random.default_rng(1).normal(size=(1000, 4))
    rows = drawn_points(points, 100)
    assert len(np.unique(rows)) == 100 and (np.diff(rows) > 0).all() and np.ptp(rows) > 900
    np.testing.assert_array_equal(rows, drawn_points(points, 100))
    np.testing.assert_array_equal(drawn_points(points, 1000), np.arange(1000))


def test_points_that_are_not_finite_are_not_drawn() -> None:
    points = POINTS.copy()
    points[1, 2] = np.nan
    assert drawn_points(points).tolist() == [0, 2]
    assert drawn_points(np.zeros((0, 4))).tolist() == []


@pytest.mark.parametrize(("by", "order"), [("height", [0, 1, 2]), ("intensity", [1, 2, 0])])
def test_points_go_from_the_first_to_the_last_colour_by(by: str, order: list[int]) -> None:
    colors = point_colors(SCENE, ALL, by)  # type: ignore[arg-type]
    assert colors.by == by
    np.testing.assert_array_equal(colors.rgb[order[0]], rgb(VIRIDIS[0]))
    np.testing.assert_array_equal(colors.rgb[order[2]], rgb(VIRIDIS[-1]))
    assert colors.rgb[order[1]].tolist() not in (rgb(VIRIDIS[0]).tolist(), rgb(VIRIDIS[-1]).tolist())


def test_classes_of_points_have_the_colours_of_the_pictures() -> None:
    scene = Scene(POINTS, point_classes=np.array([1, 255, 0]))
    colors = point_colors(scene, ALL[:2], "class")
    np.testing.assert_array_equal(colors.rgb, [rgb(color_of(1)), rgb(color_of(255))])
    assert classes_in(scene, STYLE) == {"road": color_of(0), "<wall>": color_of(1), "no class": color_of(255)}


def test_without_classes_or_intensity_the_height_is_shown() -> None:
    assert point_colors(SCENE, ALL, "class").by == "height"
    assert point_colors(Scene(POINTS[:, :3]), ALL, "intensity").by == "height"
    assert point_colors(Scene(POINTS[:0]), ALL[:0], "height").rgb.shape == (0, 3)


def test_an_intensity_that_is_constant_or_nan_has_a_colour() -> None:
    points = POINTS.copy()
    points[:, 3] = [0.5, np.nan, 0.5]
    assert point_colors(Scene(points), ALL, "intensity").rgb.shape == (3, 3)
    points[:, 3] = 0.5
    assert point_colors(Scene(points), ALL, "intensity").rgb.shape == (3, 3)


def test_lines_of_a_box_are_its_edges_and_its_heading() -> None:
    lines = box_lines(BOXES)
    assert lines.shape == (2, 13, 2, 3)
    lengths = np.linalg.norm(lines[0, :, 0] - lines[0, :, 1], axis=1)
    np.testing.assert_allclose(np.sort(lengths[:12]), np.repeat([1.5, 2, 4], 4), atol=1e-6)
    np.testing.assert_allclose(lines[0, 12], [[10, 5, 0], [12.6, 5, 0]], atol=1e-6)
    np.testing.assert_allclose(lines[1, 12], [[20, -5, 0], [20, -2.4, 0]], atol=1e-6)
    assert box_lines(BOXES[:0]).shape == (0, 13, 2, 3)


def test_boxes_are_coloured_by_class_or_by_what_became_of_them() -> None:
    part = Part("after", SCENE, np.array([True, False]))
    assert [name for name, _ in box_groups(part, STYLE)] == ["Car", "Pedestrian"]
    assert box_groups(part, STYLE, by_state=True) == [("kept", KEPT_COLOR), ("changed", CHANGED_COLOR)]
    truth = Part("labels", Scene(POINTS, BOXES, np.array([1, 2])))
    assert {color for _, color in box_groups(truth, STYLE, over=True)} == {LABEL_COLOR}
    assert box_groups(truth, STYLE, by_state=True) == box_groups(part, STYLE)


def test_the_text_of_a_box_has_class_score_place_size_and_heading() -> None:
    text = box_text(Part("after", SCENE, np.array([True, False])), 1, ["Car", "Pedestrian"])
    for words in ("after", "Pedestrian 0.50", "changed", "x 20.0", "y -5.0", "4.0 x 2.0 x 1.5", "90 degrees"):
        assert words in text


def test_headings_are_named_between_minus_180_and_180_degrees() -> None:
    boxes = BOXES.copy()
    boxes[0, 6] = 1.5 * np.pi
    assert "heading -90 degrees" in box_text(
        Part("labels", Scene(POINTS, boxes, np.array([1, 2]))), 0, ["Car"]
    )


def test_boxes_below_the_score_and_boxes_that_are_not_finite_are_left_out() -> None:
    part = Part("after", SCENE, np.array([True, False])).above(0.6)
    assert part.scene.labels.tolist() == [1] and part.kept is not None and part.kept.tolist() == [True]
    boxes = BOXES.copy()
    boxes[0, 3] = np.nan
    assert Part("labels", Scene(POINTS, boxes, np.array([1, 2]))).above(0.6).scene.labels.tolist() == [2]


def test_a_heading_is_a_rotation_about_z() -> None:
    np.testing.assert_allclose(quaternions(np.array([0, np.pi])), [[1, 0, 0, 0], [0, 0, 0, 1]], atol=1e-12)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(-25.6, 25.6, [-20, -10, 0, 10, 20]), (0, 70.4, [0, 10, 20, 30, 40, 50, 60, 70])],
)
def test_ticks_are_round_numbers_of_metres(low: float, high: float, ticks: list[float]) -> None:
    np.testing.assert_allclose(ticks_of(low, high), ticks, atol=1e-9)


def test_the_ground_is_below_most_points_and_at_the_floor_without_points() -> None:
    assert (
        ground_of(np.column_stack([np.zeros((99, 2)), np.r_[np.full(50, -1.7), np.arange(49)]]), STYLE.limits)
        == -1.7
    )
    assert ground_of(POINTS[:0], STYLE.limits) == -3


def test_cells_are_a_picture_whose_row_0_is_the_smallest_y() -> None:
    picture = cell_picture(np.array([[0, 0], [1, 255]]))
    assert picture.shape == (2, 2, 4) and picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[1, 0, :3], rgb(color_of(1)))


def test_the_legend_names_colours_and_escapes_names() -> None:
    colors = PointColors(np.zeros((1, 3), np.uint8), "height", -1.9, 0.8)
    text = legend(colors, {"<wall>": "#123456"}, {"Car": "#654321"})
    for words in ("&lt;wall&gt;", "#123456", "Car", "#654321", "height -1.9 m", "0.8 m"):
        assert words in text
    assert "height" not in legend(None, {}, {})


def test_an_intensity_that_is_not_finite_leaves_the_colours_of_the_others_alone() -> None:
    points = np.array([[0, 0, 0, 0.0], [0, 0, 0, 1.0], [0, 0, 0, 0.5]], np.float32)
    wanted = point_colors(Scene(points), np.arange(3), "intensity")
    strange = np.concatenate([points, [[0, 0, 0, np.inf], [0, 0, 0, -np.inf], [0, 0, 0, np.nan]]])
    found = point_colors(Scene(strange), np.arange(6), "intensity")
    np.testing.assert_array_equal(found.rgb[:3], wanted.rgb)
    assert (found.low, found.high) == (wanted.low, wanted.high)
