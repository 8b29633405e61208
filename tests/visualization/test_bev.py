"""Pictures from above: what is drawn where, in which colour."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from pcdet_freeze.datasets.synthetic.labels import CLASSES
from pcdet_freeze.errors import OutputError, PCDetFreezeError
from pcdet_freeze.visualization.bev import (
    CHANGED_COLOR,
    CLASS_COLORS,
    KEPT_COLOR,
    LANE_COLOR,
    Style,
    draw,
    new_figure,
    require_matplotlib,
    save,
)
from pcdet_freeze.visualization.scene import Scene

STYLE = Style([0, -20, -3, 40, 20, 1], ["Car", "Pedestrian"], ["road", "building"])
POINTS = np.array([[1, 1, 0, 0.1], [2, 2, 1, 0.9], [30, -5, 0.5, 0.5]], np.float32)
BOXES = np.array([[10, 5, 0, 4, 2, 1.5, 0], [20, -5, 0, 4, 2, 1.5, np.pi / 2]], np.float32)
SCENE = Scene(POINTS, BOXES, np.array([1, 2]), np.array([0.9, 0.5]))


def lines(scene: Scene, style: Style = STYLE, kept: np.ndarray | None = None) -> list:
    _, (ax,) = new_figure(style)
    draw(ax, scene, style, "frame", kept)
    return ax.lines


def names(scene: Scene, style: Style = STYLE, kept: np.ndarray | None = None) -> list[str]:
    _, (ax,) = new_figure(style)
    draw(ax, scene, style, "", kept)
    legend = ax.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def test_the_outline_of_a_box_is_where_its_corners_are() -> None:
    outline = np.array(lines(SCENE)[0].get_xydata())
    np.testing.assert_allclose(outline.min(axis=0), [8, 4], atol=1e-6)
    np.testing.assert_allclose(outline.max(axis=0), [12, 6], atol=1e-6)
    np.testing.assert_array_equal(outline[0], outline[-1])


def test_the_heading_goes_from_the_centre_through_the_front() -> None:
    ahead, left = (np.array(lines(SCENE)[number].get_xydata()) for number in (1, 3))
    np.testing.assert_allclose(ahead[0], [10, 5], atol=1e-6)
    assert ahead[1, 0] > 12 and abs(ahead[1, 1] - 5) < 1e-6
    assert left[1, 1] > -3 and abs(left[1, 0] - 20) < 1e-6


def test_boxes_are_named_by_class_or_by_what_became_of_them() -> None:
    assert names(SCENE) == ["Car", "Pedestrian"]
    kept = np.array([True, False])
    assert names(SCENE, kept=kept) == ["kept", "changed"]
    assert [line.get_color() for line in lines(SCENE, kept=kept)[::2]] == [KEPT_COLOR, CHANGED_COLOR]


def test_points_are_named_by_class_where_asked_for() -> None:
    scene = Scene(POINTS, point_classes=np.array([0, 1, 255]))
    assert names(scene, Style(STYLE.limits, [], ["road", "building"], "class")) == ["road", "building"]
    assert names(scene) == []


def test_lanes_are_drawn_along_their_points() -> None:
    line = np.array([[0, 0], [10, 1], [20, 3]], np.float32)
    (drawn,) = lines(Scene(POINTS, lanes=[line]))
    np.testing.assert_array_equal(drawn.get_xydata(), line)
    assert drawn.get_color() == LANE_COLOR


def test_cells_cover_the_range_with_row_0_at_the_smallest_y() -> None:
    _, (ax,) = new_figure(STYLE)
    scene = Scene(POINTS, cells=np.zeros((4, 8), np.int64))
    draw(ax, scene, Style(STYLE.limits, color_by="class"))
    (image,) = ax.images
    assert image.get_extent() == [0, 40, -20, 20] and image.origin == "lower"


def test_an_empty_frame_says_so() -> None:
    _, (ax,) = new_figure(STYLE)
    draw(ax, Scene(np.zeros((0, 4), np.float32)), STYLE)
    assert [text.get_text() for text in ax.texts] == ["no points in range"]


@pytest.mark.parametrize("color_by", ["height", "intensity", "class"])
def test_a_picture_is_written_as_png(tmp_path: Path, color_by: str) -> None:
    style = Style(STYLE.limits, color_by=color_by)  # type: ignore[arg-type]
    figure, axes = new_figure(style, 2)
    for ax in axes:
        draw(ax, SCENE, style)
    path = save(figure, tmp_path / "new" / "a.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    figure, _ = new_figure(STYLE)
    with pytest.raises(OutputError, match="file"):
        save(figure, tmp_path / "file" / "a.png")


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(PCDetFreezeError, match=r"pcdet-freeze\[vis\]"):
        require_matplotlib()


def test_each_class_of_the_simulated_scenes_has_a_color_of_its_own() -> None:
    names = CLASSES
    assert len(names) == 11 and len(set(CLASS_COLORS[: len(names)])) == len(names)
