"""A config is checked as a whole before any data is read: all faults at once, each with file and line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from tool_runs import CFG, words

import pcdet_freeze
from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.errors import ConfigError, FreezeError
from pcdet_freeze.freezing import FreezePlan

BROKEN = """CLASS_NAMES: [Car]
DATA_CONFIG:
    DATASET: KittiDataset
    DATA_PATH: nowhere
    POINT_CLOUD_RANGE: [0, 0, 0, 1, 1, 1]
    DATA_SPLIT: {train: train, test: val}
    INFO_PATH: {train: [a.pkl], test: [b.pkl]}
    POINT_FEATURE_ENCODING: {used_feature_list: [x, y, z], src_feature_list: [x, y, z]}
    DATA_AUGMENTOR:
        AUG_CONFIG_LIST:
            - NAME: random_world_flip
              ALONG_AXIS_LIST: [q]
    DATA_PROCESSOR:
        - NAME: shuffle_points
          SHUFFLE_ENABLED: {train: 3, test: False}
        - NAME: mask_points_and_boxes_outside_range
          REMOVE_OUTSIDE_BOX: True
MODEL:
    NAME: PointPillar
    VFE: {NAME: PillarVFE, NUM_FILTERS: [8]}
    MAP_TO_BEV: {NAME: PointPillarScatter, NUM_BEV_FEATURES: 8}
    DENSE_HEAD:
        NAME: AnchorHeadSingle
        NUM_DIR_BINS: 0
    FREEZE:
        FUSES: True
        SHARED: maybe
OPTIMIZATION:
    BATCH_SIZE_PER_GPU: 2
    NUM_EPOCHS: 1
    OPTIMIZER: adam_onecycel
    LR: -1
    WEIGHT_DECAY: 0.01
"""
FAULTS = {
    12: r"DATA_CONFIG\.DATA_AUGMENTOR\.AUG_CONFIG_LIST\[0\]\.ALONG_AXIS_LIST\[0\] must be 'x' or 'y'",
    15: r"DATA_CONFIG\.DATA_PROCESSOR\[0\]\.SHUFFLE_ENABLED\.train must be true or false; got 3",
    17: r"DATA_CONFIG\.DATA_PROCESSOR\[1\]\.REMOVE_OUTSIDE_BOX .*did you mean REMOVE_OUTSIDE_BOXES\?",
    22: r"MODEL\.DENSE_HEAD\.LOSS_CONFIG is required",
    24: r"MODEL\.DENSE_HEAD\.NUM_DIR_BINS must be a whole number, 1 or more; got 0",
    26: r"MODEL\.FREEZE\.FUSES is not a key.*did you mean FUSE\?",
    27: r"MODEL\.FREEZE\.SHARED must be 'error' or 'freeze'; got 'maybe'",
    31: r"OPTIMIZATION\.OPTIMIZER must be one of .*did you mean adam_onecycle\?",
    32: r"OPTIMIZATION\.LR must be a number above 0; got -1",
}


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    path = tmp_path / "broken.yaml"
    path.write_text(BROKEN)
    return path


def test_faults_in_every_section_come_at_once_with_file_and_line(broken: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        pcdet_freeze.train(broken, output_dir=broken.parent / "out")
    for line, fault in FAULTS.items():
        assert re.search(rf"broken\.yaml, line {line}: {fault}", str(caught.value))


def test_the_train_command_prints_them_and_exits_with_1(broken: Path, capsys: Any) -> None:
    assert main(["train", "--cfg_file", str(broken), "--output_dir", str(broken.parent / "out")]) == 1
    shown = capsys.readouterr().out
    assert all(f"broken.yaml, line {line}: " in shown for line in FAULTS)
    assert "nowhere" not in shown


def test_a_key_from_the_command_line_is_named_as_such(broken: Path) -> None:
    with pytest.raises(ConfigError, match=r"--set: OPTIMIZATION\.LR must be a number above 0; got -2"):
        pcdet_freeze.train(broken, {"OPTIMIZATION.LR": -2}, output_dir=broken.parent / "out")


def test_faults_of_the_freeze_keys_alone_are_a_freeze_error() -> None:
    cfg = cfg_from_yaml_file(CFG)
    cfg.MODEL.FREEZE = {"SHARED": "maybe"}
    with pytest.raises(FreezeError, match=r"MODEL\.FREEZE\.SHARED"):
        check_config(cfg)


def test_an_evaluation_needs_no_whole_optimization() -> None:
    cfg = cfg_from_yaml_file(CFG)
    del cfg.OPTIMIZATION["LR"]
    assert not check_config(cfg, training=False)
    with pytest.raises(ConfigError, match=r"OPTIMIZATION\.LR is required"):
        check_config(cfg)


def test_p5_train_dropped_is_refused_since_every_trainable_parameter_is_in_the_optimizer(
    tmp_path: Path, capsys: Any
) -> None:
    sets = ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe]", "MODEL.FREEZE.TRAIN_DROPPED", "True"]
    assert main(["train", *words(tmp_path, sets=sets)]) == 1
    text = capsys.readouterr().out
    assert "TRAIN_DROPPED" in text and "every trainable parameter is in the optimizer" in text
    assert "--set: MODEL.FREEZE.TRAIN_DROPPED" in text
    assert not FreezePlan.from_cfg({"MODEL": {"FREEZE": {"TRAIN_DROPPED": False}}}).openpcdet_only()


def test_the_plan_is_parsed_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[object] = []
    read = FreezePlan.read.__func__  # type: ignore[attr-defined]

    def counted(cls: type[FreezePlan], cfg: object) -> Any:
        parsed.append(cfg)
        return read(cls, cfg)

    monkeypatch.setattr(FreezePlan, "read", classmethod(counted))
    flags = ["--max_iters", 1, "--batch_size", 2, "--num_epochs_to_eval", 0]
    sets = ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe]", "MODEL.FREEZE.ALLOW_RANDOM", "True"]
    assert main(["train", *words(tmp_path, *flags, sets=sets)]) == 0
    assert len(parsed) == 1
