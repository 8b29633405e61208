"""Reports in a real headless Chromium: drawn, without an error, opened by clicks, printed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser, find_chromium
from PIL import Image

from pcdet_freeze.report.compare import comparison_page
from pcdet_freeze.report.record import Certificate, Part, Picture, RunRecord, Task
from pcdet_freeze.report.run_page import LR, run_page
from pcdet_freeze.report.stages_page import stages_page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_chromium() is None, reason="no Chromium ($CHROMIUM, or on PATH)"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder with one picture."""
    made = tmp_path_factory.mktemp("run")
    (made / "pictures").mkdir()
    Image.fromarray(np.full((40, 60, 3), 128, np.uint8)).save(made / "pictures" / "a.png")
    return made


def record(folder: Path) -> RunRecord:
    tree = [
        Part("backbone_2d", "Backbone", 30, "partly"),
        Part("backbone_2d.blocks", "ModuleList", 20, "frozen"),
        Part("backbone_2d.blocks.0", "Conv2d", 20, "frozen"),
    ]
    curves = {"loss": [[float(i), 1 / i] for i in range(1, 9)], LR: [[1.0, 0.1], [8.0, 0.2]]}
    return RunRecord(
        name="models/toy/default", folder=str(folder), entries=["backbone_2d.blocks"], tree=tree,
        curves=curves,
        certificate=Certificate({"backbone_2d.blocks.0.weight": "float32[2,2]:00"}, "00", "blake2b"),
        tasks=[Task("detection", ["dense_head"], "identical")], after={"mAP": 0.5}, iterations=8,
        pictures=[Picture("a", "1 box", "pictures/a.png")], command="pcdet-freeze train",
    )  # fmt: skip


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(chromium: Browser, folder: Path) -> Browser:
    """The report of a run, freshly loaded."""
    file = folder / "report.html"
    file.write_text(run_page(record(folder), folder))
    chromium.messages.clear()
    chromium.requests.clear()
    chromium.open(file)
    return chromium


def is_shown(page: Browser, path: str) -> Any:
    return page.value(f"document.querySelector('[data-path=\"{path}\"]').checkVisibility()")


def test_the_page_is_drawn_without_an_error_and_requests_nothing_else(page: Browser) -> None:
    assert page.messages == []
    assert [url.partition(":")[0] for url in page.requests if not url.startswith("data:")] == ["file"]
    assert page.value("document.images[0].naturalWidth") == 60
    assert page.value("document.querySelector('polyline').getBoundingClientRect().width") > 100


def test_the_tree_opens_and_closes_by_a_click(page: Browser) -> None:
    click = "document.querySelector('[data-path=\"backbone_2d\"] > summary').click()"
    assert is_shown(page, "backbone_2d.blocks") is False
    page.value(click)
    assert is_shown(page, "backbone_2d.blocks") is True
    page.value(click)
    assert is_shown(page, "backbone_2d.blocks") is False


def test_frozen_and_trainable_modules_have_colours_of_their_own(page: Browser) -> None:
    color = "getComputedStyle(document.querySelector('.state.{}')).color"
    assert page.value(color.format("frozen")) != page.value(color.format("partly"))


@pytest.mark.parametrize("width", [400, 1200])
def test_nothing_is_wider_than_the_window(page: Browser, tmp_path: Path, width: int) -> None:
    page.screenshot(tmp_path / "page.png", width=width)
    assert page.value("document.documentElement.scrollWidth") <= width
    assert len(np.unique(np.asarray(Image.open(tmp_path / "page.png").convert("L")))) > 20


def test_the_page_can_be_printed(page: Browser) -> None:
    assert page.pdf().startswith(b"%PDF-")


def test_a_comparison_and_a_page_of_stages_are_drawn_without_an_error(
    chromium: Browser, folder: Path
) -> None:
    runs = [record(folder), record(folder / "b")]
    for name, text in {
        "compare": comparison_page(runs),
        "stages": stages_page("Stages", "", "a  1", runs),
    }.items():
        (folder / f"{name}.html").write_text(text)
        chromium.messages.clear()
        chromium.open(folder / f"{name}.html")
        assert chromium.messages == [] and chromium.value("document.body.innerText.length") > 100
