"""Which OpenPCDet the command finds, and what it prints where there is none."""

from __future__ import annotations

import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from standin_runs import Standin

from pcdet_freeze import openpcdet
from pcdet_freeze.integrations.openpcdet.command.installation import describe, find_pcdet

GIT = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of a checkout of OpenPCDet from which its version is read."""
    (tmp_path / "pcdet").mkdir()
    (tmp_path / "pcdet/__init__.py").write_text("raise ImportError('it must not be imported')")
    (tmp_path / "pcdet/version.py").write_text('__version__ = "0.6.0+0000000"\n')
    return tmp_path


def test_the_version_is_read_without_importing_pcdet(checkout: Path) -> None:
    found = find_pcdet(checkout)
    assert found == checkout / "pcdet" and "pcdet" not in sys.modules
    assert describe(found) == f"OpenPCDet 0.6.0 in {checkout}"


def test_the_commit_is_that_of_the_checkout(checkout: Path) -> None:
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*GIT, *words], cwd=checkout, check=True)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True).stdout
    assert f"0.6.0 (commit {commit[:7]})" in describe(checkout / "pcdet")


def test_an_editable_install_that_has_a_finder_of_its_own_is_found(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Finder:
        @staticmethod
        def find_spec(name: str, path: Any = None, target: Any = None) -> Any:
            return PathFinder.find_spec(name, [str(checkout)]) if name == "pcdet" else None

    monkeypatch.setattr(sys, "meta_path", [Finder, *sys.meta_path])
    assert find_pcdet() == checkout / "pcdet"


def test_the_command_names_the_openpcdet_that_it_uses(standin: Standin) -> None:
    run = standin.train("second")
    assert run.code == 0 and run.err.startswith("pcdet_freeze: OpenPCDet ")


def test_functions_that_a_fork_does_not_have_are_named(
    standin: Standin, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    utils = ModuleType("train_utils.train_utils")
    vars(utils).update(train_model=lambda: None, train_one_epoch=lambda: None)
    monkeypatch.setitem(sys.modules, utils.__name__, utils)
    openpcdet.install()
    told = capsys.readouterr().err
    assert "has no checkpoint_state" in told and "checkpoints store no certificate" in told


def test_in_a_folder_without_openpcdet_the_command_says_how_to_get_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    assert openpcdet.main([]) == 2 and "git clone" in capsys.readouterr().out
    assert (
        openpcdet.main(["tools/train.py"]) == 1 and "no OpenPCDet in this folder" in capsys.readouterr().err
    )


def test_beside_an_openpcdet_the_command_says_where_to_run(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(checkout)
    assert openpcdet.main(["tools/train.py"]) == 1
    assert f"cd {checkout}" in capsys.readouterr().err
