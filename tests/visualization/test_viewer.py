"""The 3D view: what its scene tree and its panel hold; no browser is needed."""

from __future__ import annotations

import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("viser")

from pcdet_freeze.errors import ConfigError, DataError, PCDetFreezeError
from pcdet_freeze.visualization.bev import Style
from pcdet_freeze.visualization.scene import Part, Scene
from pcdet_freeze.visualization.scene_3d import MAX_POINTS
from pcdet_freeze.visualization.viewer import BY_CLASS, Look, Viewer, free_port, has_display, require_viser

STYLE = Style([0, -20, -3, 40, 20, 1], ["Car", "Pedestrian"], ["road", "building"])
POINTS = np.array([[1, 1, 0, 0.1], [2, 2, 1, 0.9], [30, -5, 0.5, 0.5]], np.float32)
BOXES = np.array([[10, 5, 0, 4, 2, 1.5, 0], [20, -5, 0, 4, 2, 1.5, np.pi / 2]], np.float32)


def prediction(points: np.ndarray = POINTS) -> Scene:
    lane = np.array([[0, 0], [10, 1], [20, 3]], np.float32)
    return Scene(points, BOXES, np.array([1, 2]), np.array([0.9, 0.5]), np.zeros(len(points), np.int64),
                 np.zeros((4, 4), np.int64), [lane])  # fmt: skip


LOOKS = [
    Look("alone", [Part("prediction", prediction())]),
    Look("both", [Part("labels", Scene(POINTS, BOXES, np.array([1, 2]))),
                  Part("before", prediction(), np.array([True, False])),
                  Part("after", prediction(), np.array([True, False]))]),
    Look("none", [Part("prediction", Scene(np.zeros((0, 4), np.float32)))]),
]  # fmt: skip


def look(index: int) -> Look:
    if index == len(LOOKS):
        raise DataError("<file> is damaged")
    return LOOKS[index]


@pytest.fixture
def viewer() -> Iterator[Viewer]:
    """Three frames, then a damaged one; at the first."""
    shown = Viewer(len(LOOKS) + 1, look, STYLE, score=0.3, port=0)
    shown.update()
    yield shown
    shown.close()


def at(viewer: Viewer, frame: int, **controls: Any) -> Viewer:
    """The same at frame 1, 2, ... with other values of controls."""
    viewer.frame.value = frame
    for name, value in controls.items():
        getattr(viewer, name).value = value
    viewer.update()
    return viewer


def node(viewer: Viewer, name: str) -> Any:
    return viewer.server.scene.get_handle_by_name(name)


def names(viewer: Viewer, part: str) -> list[str]:
    """The names above the boxes of a part."""
    found = [node(viewer, f"/{part}/names/{number}") for number in range(3)]
    return [handle.text for handle in found if handle is not None]


def test_a_prediction_has_points_boxes_names_lanes_and_ground(viewer: Viewer) -> None:
    np.testing.assert_array_equal(node(viewer, "/prediction/points").points, POINTS[:, :3])
    assert node(viewer, "/prediction/edges/Car").points.shape == (13, 2, 3)
    assert names(viewer, "prediction") == ["Car 0.90", "Pedestrian 0.50"]
    assert node(viewer, "/prediction/lanes").points.shape == (2, 2, 3)
    assert node(viewer, "/prediction/grid") is not None
    assert "alone" in viewer.status.content and "2 boxes" in viewer.status.content


def test_boxes_below_the_score_go_and_come_back(viewer: Viewer) -> None:
    assert names(at(viewer, 1, score=0.6), "prediction") == ["Car 0.90"]
    assert node(viewer, "/prediction/edges/Pedestrian") is None
    assert names(at(viewer, 1, score=0.0), "prediction") == ["Car 0.90", "Pedestrian 0.50"]
    assert names(at(viewer, 1, named=False), "prediction") == []


def test_points_change_colour_but_not_place(viewer: Viewer) -> None:
    by_height = node(viewer, "/prediction/points").colors.copy()
    points = node(at(viewer, 1, color="class"), "/prediction/points")
    assert (points.colors != by_height).any() and len(np.unique(points.colors, axis=0)) == 1
    assert node(viewer, "/prediction/cells") is not None and "road" in viewer.legend.content
    assert node(at(viewer, 1, color="intensity"), "/prediction/cells") is None


def test_parts_lie_beside_each_other_and_never_overlap(viewer: Viewer) -> None:
    at(viewer, 2)
    places = [node(viewer, f"/{part}").position[1] for part in ("labels", "before", "after")]
    assert (np.diff(places) < -40).all()
    assert not node(viewer, "/prediction").visible
    assert "1 of 2 boxes kept" in viewer.status.content


def test_parts_over_each_other_share_the_points_of_the_last(viewer: Viewer) -> None:
    at(viewer, 2, beside=False)
    assert [tuple(node(viewer, f"/{part}").position) for part in ("labels", "after")] == [(0, 0, 0)] * 2
    assert node(viewer, "/before/points") is None and node(viewer, "/after/points") is not None
    assert node(viewer, "/labels/edges/labels") is not None


def test_a_part_can_be_hidden(viewer: Viewer) -> None:
    at(viewer, 2)._parts["before"].value = False
    viewer.update()
    assert [node(viewer, f"/{part}").visible for part in ("labels", "before", "after")] == [True, False, True]
    assert "1 of 2 boxes kept" in viewer.status.content


def test_boxes_are_green_and_red_by_state_beside_a_former_prediction(viewer: Viewer) -> None:
    assert node(at(viewer, 2), "/after/edges/kept") is not None and "changed" in viewer.legend.content
    assert node(at(viewer, 2, boxes=BY_CLASS), "/after/edges/kept") is None
    assert node(viewer, "/after/edges/Car") is not None


def test_an_empty_frame_and_a_damaged_one_say_so_and_the_next_is_drawn(viewer: Viewer, capsys: Any) -> None:
    assert "no points in range" in at(viewer, 3).status.content and node(viewer, "/prediction/points") is None
    assert "&lt;file&gt; is damaged" in at(viewer, 4).status.content
    assert "DataError: <file> is damaged" in capsys.readouterr().err
    assert not node(viewer, "/prediction").visible
    assert "alone" in at(viewer, 1).status.content and node(viewer, "/prediction").visible


def test_a_large_cloud_is_drawn_in_part_and_says_so() -> None:
    points = np.random.default_rng(0).uniform(0, 9, (1_000_000, 4)).astype(np.float32)
    points[:5] = np.nan
    large = Viewer(1, lambda _: Look("large", [Part("prediction", Scene(points))]), STYLE, port=0)
    large.update()
    large.close()
    assert node(large, "/prediction/points").points.shape == (MAX_POINTS, 3)
    assert f"{MAX_POINTS} of 1000000 points are drawn" in large.status.content


@pytest.mark.parametrize("error", [FileNotFoundError(2, "gone", "a.bin"), MemoryError("too large")])
def test_a_frame_whose_file_is_gone_or_that_is_too_large_is_named_and_the_next_is_drawn(error: Any) -> None:
    def look_at(index: int) -> Look:
        if index == 0:
            raise error
        return LOOKS[0]

    shown = Viewer(2, look_at, STYLE, port=0)
    shown.update()
    assert type(error).__name__ in shown.status.content
    assert "alone" in at(shown, 2).status.content
    shown.close()


def test_a_class_and_a_name_of_a_file_that_nobody_can_print_are_shown() -> None:
    scene = Scene(POINTS, BOXES, np.array([1, 7]), np.array([0.9, 0.5]))
    shown = Viewer(1, lambda _: Look("b\udce9.bin", [Part("prediction", scene)]), STYLE, port=0)
    shown.update()
    assert "class 6 1" in shown.status.content and "b\\udce9.bin" in shown.status.content
    shown.close()


def test_steps_end_at_the_first_and_the_last_frame(viewer: Viewer) -> None:
    for by, frame in ((-1, 1), (1, 2), (5, 4)):
        viewer.step(by)
        assert viewer.frame.value == frame


def test_a_former_frame_is_not_predicted_again_and_few_are_kept(viewer: Viewer) -> None:
    at(at(at(viewer, 1), 2), 1)
    assert viewer._look.cache_info().misses == 2 and viewer._look.cache_info().maxsize < 10


def test_memory_does_not_grow_with_the_frames_that_were_shown(viewer: Viewer) -> None:
    def messages() -> int:
        return len(viewer.server._websock_server._broadcast_buffer.message_from_id)

    for frame in (2, 3, 1) * 2:
        at(viewer, frame)
    before = messages()
    for frame in (2, 3, 1) * 5:
        at(viewer, frame)
    assert messages() == before


def test_a_port_in_use_is_passed_over_and_a_foreign_host_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port("127.0.0.1", port) != port
    with pytest.raises(ConfigError, match=r"--host .*192\.0\.2\.1"):
        free_port("192.0.2.1", 8080)
    with pytest.raises(ConfigError, match=r"--port .*65535"):
        free_port("127.0.0.1", 70000)


def test_the_address_is_this_machine_only_unless_another_host_is_given(viewer: Viewer) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", viewer.address)


def test_a_browser_opens_only_where_a_display_is(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    assert not has_display()
    monkeypatch.setenv("DISPLAY", ":0")
    assert has_display()
    monkeypatch.setenv("SSH_CONNECTION", "there")
    assert not has_display()


def test_the_name_of_a_foreign_host_is_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def no_such_name(address: Any, **_: Any) -> Any:
        asked.append(address)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "create_server", no_such_name)
    with pytest.raises(ConfigError, match="--host"):
        free_port("nowhere.invalid", 8080)
    assert len(asked) == 1


def test_an_older_viser_is_named_with_the_version_that_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    import viser

    monkeypatch.delattr(viser.GuiApi, "add_command")
    with pytest.raises(PCDetFreezeError, match=r"viser 1\.1 or later"):
        require_viser()


def test_without_viser_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(PCDetFreezeError, match=r"pcdet-freeze\[viewer\]"):
        require_viser()
