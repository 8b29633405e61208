"""OPTIMIZATION.TRACKER and --tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tool_runs import CFG

from pcdet_freeze.config import load_cfg
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.engine.tracking import settings
from pcdet_freeze.engine.tracking.settings import is_installed, tracker_names
from pcdet_freeze.errors import ConfigError


@pytest.mark.parametrize(
    ("key", "option", "names"),
    [
        (None, None, ()),
        ("wandb", None, ("wandb",)),
        (["wandb", "mlflow"], None, ("wandb", "mlflow")),
        ("wandb", "mlflow", ("mlflow",)),
        (None, "wandb,mlflow", ("wandb", "mlflow")),
        (["wandb", "mlflow"], "none", ()),
    ],
)
def test_the_option_replaces_the_key(key: Any, option: str | None, names: tuple[str, ...]) -> None:
    assert tracker_names({"OPTIMIZATION": {"TRACKER": key}}, option) == names


@pytest.mark.parametrize("option", ["", "tensorboard", "wandb,none", "wandb mlflow"])
def test_an_option_that_names_no_tracker_is_an_error(option: str) -> None:
    with pytest.raises(ConfigError, match=r"--tracker must be wandb, mlflow.*or none; got"):
        tracker_names({}, option)


@pytest.mark.parametrize("value", ["tensorboard", [], "[wandb, wandb]", "[wandb, comet]", "3"])
def test_a_key_that_names_no_tracker_is_an_error_of_the_config(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"OPTIMIZATION\.TRACKER must be.*wandb.*mlflow"):
        check_config(load_cfg(CFG, ["OPTIMIZATION.TRACKER", str(value)]))


def test_a_package_that_is_not_installed_is_an_error_that_says_how_to_install_it(monkeypatch: Any) -> None:
    monkeypatch.setattr(settings, "is_installed", lambda name: name == "mlflow")
    with pytest.raises(ConfigError, match=r"not installed: wandb.*pip install 'pcdet-freeze\[trackers\]'"):
        tracker_names({"OPTIMIZATION": {"TRACKER": ["wandb", "mlflow"]}}, None)
    assert tracker_names({"OPTIMIZATION": {"TRACKER": "wandb"}}, "mlflow") == ("mlflow",)


def test_a_folder_called_as_a_package_is_no_package(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "a_folder_of_runs").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not is_installed("a_folder_of_runs") and is_installed("json")
