"""The 3D view in a real headless Chromium: drawn, without an error, changed by its controls and by clicks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import WEBGL, Browser, browser, find_chromium
from PIL import Image

pytest.importorskip("viser")

from pcdet_freeze.visualization.bev import Style
from pcdet_freeze.visualization.scene import Part, Scene
from pcdet_freeze.visualization.viewer import Look, Viewer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium ($CHROMIUM, or on PATH)"),
]
STYLE = Style([0, -20, -3, 40, 20, 1], ["Car", "Pedestrian"])
CONTROLS = ("frame", "previous", "next", "points by", "point size [m]", "lowest score", "names and scores")
WIDTH, HEIGHT, TIMEOUT = 840, 480, 150
HARMLESS = ("THREE.Clock", "GPU stall due to ReadPixels")
"""a remark of viser's client, and one of the software that draws without a GPU"""


def look(index: int) -> Look:
    points = np.random.default_rng(index).uniform([0, -20, -2, 0], [40, 20, 0, 1], (1000, 4))
    boxes = np.array([[20, -3.2, -1, 16, 9, 6, 0]])
    return Look(f"cloud {index}", [Part("prediction", Scene(points, boxes, np.array([1]), np.array([0.7])))])


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """The page of a view of two frames, which another thread draws."""
    viewer = Viewer(2, look, STYLE, port=0)
    drawing = threading.Thread(target=viewer.run)
    drawing.start()
    try:
        with browser(tmp_path_factory.mktemp("profile"), *WEBGL) as started:
            size = {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
            started.call("Emulation.setDeviceMetricsOverride", **size)
            started.open(viewer.address)
            yield started
    finally:
        viewer.close()
        drawing.join()


def becomes(page: Browser, expression: str) -> None:
    """Wait until a JavaScript expression is true."""
    end = time.monotonic() + TIMEOUT
    while page.value(expression) is not True:
        assert time.monotonic() < end, (
            f"{expression} is not true; the page: {page.value('document.body.innerText')}"
        )


def says(page: Browser, text: str) -> None:
    becomes(page, f"document.body.innerText.includes({text!r})")


def red_pixels(page: Browser, file: Path) -> int:
    """Pixels left of the panel with the hue of cars; the scene fades in."""
    page.screenshot(file, WIDTH, HEIGHT)
    shown = np.asarray(Image.open(file).convert("RGB"), np.int64)[:, : WIDTH - 340]
    return int((shown[..., 0] - shown[..., 1:].max(axis=2) > 50).sum())


def test_the_scene_and_the_controls_are_drawn_without_an_error(page: Browser, tmp_path: Path) -> None:
    says(page, "cloud 0")
    end = time.monotonic() + TIMEOUT
    while red_pixels(page, tmp_path / "page.png") < 100:
        assert time.monotonic() < end, "the box is not drawn"
    shown = page.value("document.body.innerText")
    assert [label for label in CONTROLS if label not in shown] == []
    assert [text for text in page.messages if not any(known in text for known in HARMLESS)] == []


def test_the_page_loads_nothing_from_the_network(page: Browser) -> None:
    says(page, "cloud 0")
    own = page.value("location.origin")
    assert own.startswith("http://127.0.0.1:")
    assert [url for url in page.requests if not url.startswith((f"{own}/", "data:", "blob:"))] == []


def test_a_click_on_a_box_shows_what_it_is(page: Browser) -> None:
    says(page, "cloud 0")
    end = time.monotonic() + TIMEOUT
    while "heading 0 degrees" not in page.value("document.body.innerText"):
        assert time.monotonic() < end, "nothing was selected"
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            page.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=WIDTH // 2,
                y=HEIGHT // 2,
                button="left",
                clickCount=1,
            )
            time.sleep(0.3)


def test_buttons_and_keys_go_to_the_next_frame_and_back(page: Browser) -> None:
    says(page, "cloud 0")
    page.value("[...document.querySelectorAll('button')].find(each => each.innerText == 'next').click()")
    says(page, "cloud 1")
    for kind in ("keyDown", "keyUp"):
        page.call("Input.dispatchKeyEvent", type=kind, key="p", code="KeyP", windowsVirtualKeyCode=80)
    says(page, "cloud 0")
