"""Checks of an OpenPCDet beside the working directory."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from doctor_cases import check, facts, openpcdet, runs, trouble, versions

from pcdet_freeze.doctor import Case
from pcdet_freeze.doctor.facts import Child
from pcdet_freeze.doctor.openpcdet import find_openpcdet

NAMES = ("openpcdet-git", "openpcdet-build", "openpcdet-numpy", "openpcdet-sharedarray",
         "openpcdet-torch-load", "openpcdet-display")  # fmt: skip
NEW = versions(sharedarray="3.2", open3d="0.18")
GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A committed OpenPCDet with sources that fit the machine."""
    made = openpcdet(
        tmp_path / "OpenPCDet", "import SharedArray\nflag = np.bool_(1)\nload(weights_only=False)\n"
    )
    subprocess.run([*GIT, "init", "-q", str(made)], check=True)
    subprocess.run([*GIT, "-C", str(made), "add", "-A"], check=True)
    subprocess.run([*GIT, "-C", str(made), "commit", "-qm", "a"], check=True)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_sound_openpcdet_has_no_trouble(name: str, folder: Path) -> None:
    assert check(name, Case(facts(versions=NEW), openpcdet=folder)).state == "sound"


@pytest.mark.parametrize("name", NAMES)
def test_without_an_openpcdet_there_is_nothing_to_check(name: str) -> None:
    assert check(name, Case(facts())).state == "not applicable"


def test_changed_files_are_named(folder: Path) -> None:
    (folder / "pcdet/utils.py").write_text("changed\n")
    assert "pcdet/utils.py" in trouble("openpcdet-git", Case(facts(), openpcdet=folder))


def test_a_folder_without_git_says_so(tmp_path: Path) -> None:
    found = check("openpcdet-git", Case(facts(), openpcdet=openpcdet(tmp_path / "copy")))
    assert found.state == "not applicable" and "git" in found.text


def test_operators_that_are_not_compiled_are_named(folder: Path) -> None:
    (folder / "pcdet/ops/iou3d_nms/iou3d_nms_cuda.so").unlink()
    assert "iou3d_nms" in trouble("openpcdet-build", Case(facts(), openpcdet=folder))


def test_operators_of_another_torch_are_found(folder: Path) -> None:
    other = facts(run=runs(pcdet=Child(1, {}, "ImportError: a.so: undefined symbol: _ZN2at6Tensor")))
    assert "undefined symbol" in trouble("openpcdet-build", Case(other, openpcdet=folder))


def test_names_that_numpy_removed_are_named_with_their_file(folder: Path) -> None:
    (folder / "pcdet/utils.py").write_text("a = np.zeros(3, dtype=np.bool)\nb = np.int(3)\n")
    text = trouble("openpcdet-numpy", Case(facts(), openpcdet=folder))
    assert "np.bool" in text and "np.int" in text and "pcdet/utils.py" in text
    old = facts(versions=versions(numpy="1.23.5"))
    assert check("openpcdet-numpy", Case(old, openpcdet=folder)).state == "sound"


def test_a_missing_sharedarray_is_found(folder: Path) -> None:
    assert "pcdet/utils.py" in trouble("openpcdet-sharedarray", Case(facts(), openpcdet=folder))


def test_torch_load_without_weights_only_is_found_with_a_late_torch_only(folder: Path) -> None:
    (folder / "pcdet/utils.py").write_text("state = torch.load(path)\n")
    assert "Weights only" in trouble("openpcdet-torch-load", Case(facts(), openpcdet=folder))
    old = facts(versions=versions(torch="2.4.1"))
    assert check("openpcdet-torch-load", Case(old, openpcdet=folder)).state == "sound"


def test_a_missing_display_is_found(folder: Path) -> None:
    dark = facts(versions=NEW, environ={})
    assert "DISPLAY" in trouble("openpcdet-display", Case(dark, openpcdet=folder))


def test_it_is_found_from_inside_and_from_beside_it(folder: Path) -> None:
    (folder.parent / "project").mkdir()
    starts = (folder, folder / "tools", folder.parent, folder.parent / "project")
    assert {find_openpcdet(start) for start in starts} == {folder}
    assert find_openpcdet(Path("/")) is None


def test_a_folder_that_is_none_is_a_failed_check(tmp_path: Path) -> None:
    assert check("openpcdet-numpy", Case(facts(), openpcdet=tmp_path)).state == "failed"
