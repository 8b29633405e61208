"""Configs are found by path or by the name of a packaged one; a file in the working directory wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcdet_freeze.config import cfg_from_yaml_file, find_config
from pcdet_freeze.config.find import config_names
from pcdet_freeze.engine.run_context import RunOptions, folders_of
from pcdet_freeze.errors import ConfigError

NAME = "synthetic_models/stage1_detect.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", [NAME, f"cfgs/{NAME}", Path(NAME)])
def test_a_packaged_config_is_found_from_any_folder(name: str, root: Path) -> None:
    assert find_config(name) == root / "cfgs" / NAME
    assert cfg_from_yaml_file(name).DATA_CONFIG.DATASET == "SyntheticDataset"


@pytest.mark.parametrize("name", [NAME, f"cfgs/{NAME}"])
def test_a_file_in_the_working_directory_wins(name: str, elsewhere: Path) -> None:
    own = elsewhere / name
    own.parent.mkdir(parents=True)
    own.write_text("CLASS_NAMES: [Truck]\n")
    assert cfg_from_yaml_file(name).CLASS_NAMES == ["Truck"]


@pytest.mark.parametrize("name", [NAME, f"cfgs/{NAME}"])
def test_a_config_of_ones_own_can_have_a_packaged_base(name: str, elsewhere: Path) -> None:
    (elsewhere / "own.yaml").write_text(f"_BASE_CONFIG_: {name}\nDATA_CONFIG: {{NUM_SCENES: {{train: 3}}}}\n")
    cfg = cfg_from_yaml_file("own.yaml")
    assert cfg.DATA_CONFIG.NUM_SCENES.train == 3 and cfg.MODEL.NAME


def test_the_run_of_a_packaged_config_writes_below_the_working_directory() -> None:
    folders = folders_of(cfg_from_yaml_file(NAME), RunOptions(extra_tag="a"))
    assert folders.root == Path("output") / "synthetic_models" / "stage1_detect" / "a"


def test_an_unknown_name_is_an_error_with_the_nearest_one() -> None:
    with pytest.raises(ConfigError, match=rf"cannot be read.*stage1_detekt\.yaml.*Did you mean {NAME}\?"):
        find_config("synthetic_models/stage1_detekt.yaml")


def test_an_absolute_path_is_no_name(elsewhere: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        find_config(elsewhere / NAME)


def test_every_packaged_config_has_a_name(root: Path) -> None:
    assert NAME in config_names() and len(config_names()) == len(list((root / "cfgs").rglob("*.yaml")))
