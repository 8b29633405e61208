"""Checks of a config, its data and its run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from doctor_cases import check, facts, trouble
from tool_runs import CFG, SMALL
from toy_dataset import ToyDataset

from pcdet_freeze.config import load_cfg
from pcdet_freeze.doctor import Case
from pcdet_freeze.errors import DataError

KITTI = "kitti_models/pointpillar.yaml"
DATA = ("frames", "intensity", "classes", "range")


def case(*overrides: object, cfg_file: object = CFG, **fields: Any) -> Case:
    """A case of a small synthetic config."""
    sets = SMALL if cfg_file == CFG else []
    return Case(facts(), str(cfg_file), (*sets, *map(str, overrides)), **fields)


@pytest.mark.parametrize("name", ["config", *DATA, "finished-run"])
def test_a_sound_config_has_no_trouble(name: str, tmp_path: Path) -> None:
    assert check(name, case(output=tmp_path)).state == "sound"


@pytest.mark.parametrize("name", ["config", "data-path", "info-files", *DATA, "finished-run"])
def test_without_a_config_there_is_nothing_to_check(name: str) -> None:
    assert check(name, Case(facts())).state == "not applicable"


def test_a_fault_of_the_config_is_named_with_its_key() -> None:
    assert "OPTIMIZATION.LR" in trouble("config", case("OPTIMIZATION.LR", "-1"))


def test_a_config_that_does_not_exist_is_named() -> None:
    assert "nowhere.yaml" in trouble("config", case(cfg_file="nowhere.yaml"))


def test_a_missing_data_folder_is_named(tmp_path: Path) -> None:
    sets = ("DATA_CONFIG.DATA_PATH", tmp_path / "none")
    assert str(tmp_path / "none") in trouble("data-path", case(*sets, cfg_file=KITTI))
    assert check("info-files", case(*sets, cfg_file=KITTI)).state == "not applicable"


def test_missing_info_files_and_databases_are_named(tmp_path: Path) -> None:
    here = case("DATA_CONFIG.DATA_PATH", tmp_path, cfg_file=KITTI)
    assert check("data-path", here).state == "sound"
    text = trouble("info-files", here)
    assert "kitti_infos_train.pkl" in text and "kitti_dbinfos_train.pkl" in text
    assert str(tmp_path) in trouble("frames", here)
    assert check("range", here).state == "not applicable"


class Bad(ToyDataset):
    """Frames with one fault each: the kind is set by the test."""

    kind = ""
    count = 10

    def __len__(self) -> int:
        return 0 if self.kind == "empty" else 10

    def load_sample(self, index: int) -> dict[str, Any]:
        sample = super().load_sample(index)
        sample["points"][:, 3] = 0.5
        if self.kind == "mixed" and index > 4:
            sample["points"][:, 3] = 200
        if self.kind == "far":
            sample["gt_boxes"][:, 2] += 30
        if self.kind == "broken" and index == 9:
            raise DataError("frame 9 cannot be read")
        return sample

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        return [{"name": np.array(["car"])}, None]


@pytest.mark.parametrize(("kind", "name", "word"), [
    ("empty", "frames", "epochs: 0it"),
    ("broken", "frames", "frame 9"),
    ("mixed", "intensity", "200"),
    ("far", "range", "box centres"),
    ("", "classes", "Car"),
])  # fmt: skip
def test_each_fault_of_the_data_is_found(kind: str, name: str, word: str) -> None:
    data = object.__new__(Bad)
    cfg = load_cfg(CFG)
    data.kind = kind
    data.point_cloud_range = np.asarray(cfg.DATA_CONFIG.POINT_CLOUD_RANGE)
    data.point_feature_encoder = type("Encoder", (), {"src_feature_list": ["x", "y", "z", "intensity"]})()
    here = case()
    here.kept |= {"train": data, "test": data}
    assert word in trouble(name, here)
    if kind in ("empty", "broken"):
        assert check("range", here).state == "not applicable"


def test_an_intensity_up_to_255_is_found_where_the_sensor_has_0_to_1(monkeypatch: pytest.MonkeyPatch) -> None:
    from pcdet_freeze.doctor import config_files

    here = case()
    assert check("intensity", here).state == "sound"
    monkeypatch.setitem(config_files.SCALES, "SyntheticDataset", 1e-6)
    assert "1e-06" in trouble("intensity", here)


def test_a_run_folder_with_the_last_epoch_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "synthetic_models/pointpillar/default/ckpt"
    folder.mkdir(parents=True)
    (folder / "checkpoint_epoch_3.pth").touch()
    assert check("finished-run", case("OPTIMIZATION.NUM_EPOCHS", 4, output=tmp_path)).state == "sound"
    text = trouble("finished-run", case("OPTIMIZATION.NUM_EPOCHS", 3, output=tmp_path))
    assert "checkpoint_epoch_3.pth" in text


def test_checkpoints_that_cannot_be_read_are_found(tmp_path: Path) -> None:
    torch.save({"model_state": {"a": torch.ones(1)}}, tmp_path / "good.pth")
    torch.save({"model_state": {"a": Path("x")}}, tmp_path / "code.pth")
    torch.save({"other": 1}, tmp_path / "other.pth")
    assert check("checkpoint", Case(facts())).state == "not applicable"
    assert check("checkpoint", Case(facts(), checkpoint=tmp_path / "good.pth")).state == "sound"
    for name in ("code.pth", "other.pth", "none.pth"):
        assert name in trouble("checkpoint", Case(facts(), checkpoint=tmp_path / name))
