"""The documentation as a site: every page is in the navigation, every link and docstring is good."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="mkdocs-material is the extra docs")


@pytest.fixture(scope="module")
def site(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``make docs`` builds."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.slow
def test_the_site_needs_no_network(site: Path) -> None:
    page = (site / "index.html").read_text()
    for tag in ("<link ", "<script ", "<img "):
        for found in page.split(tag)[1:]:
            words = found.partition(">")[0]
            assert 'rel="canonical"' in words or "://" not in words.partition("href=")[2], words
            assert "://" not in words.partition("src=")[2], words


@pytest.mark.slow
def test_readme_is_the_first_page_and_its_pictures_are_there(site: Path, root: Path) -> None:
    page = (site / "index.html").read_text()
    assert page.count("<h1") == 1 and "pcdet-freeze train" in page
    for name in (root / "docs/images").glob("*.png"):
        assert (site / "images" / name.name).is_file()


@pytest.mark.slow
def test_arguments_and_errors_of_docstrings_are_lists(site: Path) -> None:
    page = (site / "api.html").read_text()
    assert "pcdet_freeze.openpcdet.add_task" in page and page.count("Raises:") >= 10
    for left in (":func:", ":class:", ":meth:", "<p>Args:", "<p>Raises:", "<p>Returns:"):
        assert left not in page
