"""OPTIMIZATION is checked before any data is read; a fault of the config names its file and line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from engine_toy import OPTIM

from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.engine.optim.settings import check_optimization
from pcdet_freeze.engine.testing.scoring import check_metric
from pcdet_freeze.errors import ConfigError

WHOLE = {**OPTIM, "BATCH_SIZE_PER_GPU": 2, "NUM_EPOCHS": 1}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in WHOLE.items() if key not in keys}


def test_every_config_of_the_project_passes(root: Path) -> None:
    configs = [path for path in (root / "cfgs").glob("*_models/*.yaml")]
    assert len(configs) > 20
    for path in configs:
        check_optimization(cfg_from_yaml_file(path).OPTIMIZATION)


@pytest.mark.parametrize(
    ("name", "idle"),
    [
        ("adam_onecycle", ("DECAY_STEP_LIST", "LR_DECAY", "LR_CLIP", "MOMENTUM")),
        ("adam", ("MOMS", "PCT_START", "DIV_FACTOR", "MOMENTUM")),
        ("sgd", ("MOMS", "PCT_START", "DIV_FACTOR")),
    ],
)
def test_an_optimizer_needs_its_own_keys_only(name: str, idle: tuple[str, ...]) -> None:
    check_optimization({**without(*idle), "OPTIMIZER": name})


@pytest.mark.parametrize(
    ("cfg", "message"),
    [
        (without("MOMS"), "MOMS is required for OPTIMIZER adam_onecycle"),
        (without("OPTIMIZER"), "OPTIMIZATION.OPTIMIZER is required"),
        ({**WHOLE, "LR": -1}, r"OPTIMIZATION\.LR must be a number above 0; got -1"),
        ({**WHOLE, "LR": True}, "LR must be a number above 0; got True"),
        ({**WHOLE, "PCT_START": 2}, r"PCT_START must be a number from 0 to 1; got 2"),
        ({**WHOLE, "DIV_FACTOR": 0}, "DIV_FACTOR must be a number above 0"),
        ({**WHOLE, "DECAY_STEP_LIST": ["a"]}, r"DECAY_STEP_LIST\[0\] must be a number, 0 or more; got 'a'"),
        ({**WHOLE, "LOSS_SCALE_FP16": 16.0}, r"LOSS_SCALE_FP16 is not a key of this section.*known: "),
        ({**WHOLE, "ACCUMULATE": 0}, "ACCUMULATE must be a whole number, 1 or more; got 0"),
        ({**WHOLE, "ON_NONFINITE": "ignore"}, "ON_NONFINITE must be .*raise.*skip.*; got 'ignore'"),
        ({**WHOLE, "NONFINITE_LIMIT": -1}, "NONFINITE_LIMIT must be a whole number, 0 or more; got -1"),
        ({**WHOLE, "OPTIMIZER": "adamw"}, r"must be one of adam_onecycle, adam, sgd.*; got 'adamw'"),
    ],
)
def test_a_value_that_breaks_its_rule_is_an_error(cfg: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_optimization(cfg)


def test_all_faults_come_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check_optimization({**without("MOMS"), "LR": 0, "FOO": 1})
    assert all(f"OPTIMIZATION.{key} " in str(caught.value) for key in ("MOMS", "LR", "FOO"))


def test_an_unknown_metric_is_an_error_before_the_training() -> None:
    check_metric({"MODEL": {}})
    check_metric({"MODEL": {"POST_PROCESSING": {"EVAL_METRIC": "kitti"}}})
    with pytest.raises(ConfigError, match=r"EVAL_METRIC must be one of kitti.*; got 'lyft'"):
        check_metric({"MODEL": {"POST_PROCESSING": {"EVAL_METRIC": "lyft"}}})


def tool_fails_on(path: Path, text: str, capsys: Any) -> str:
    path.write_text(text)
    words = ["--cfg_file", str(path), "--output_dir", str(path.parent / "out"), "--device", "cpu"]
    assert main(["train", *words]) == 1
    return str(capsys.readouterr().out)


def test_a_config_without_its_sections_names_them(tmp_path: Path, capsys: Any) -> None:
    told = tool_fails_on(tmp_path / "m.yaml", "CLASS_NAMES: [Car]\nMODEL: {}\n", capsys)
    assert all(f"m.yaml: {key} is required" in told for key in ("DATA_CONFIG", "OPTIMIZATION"))


def test_a_fault_of_a_section_has_its_file_and_line(tmp_path: Path, capsys: Any) -> None:
    text = "CLASS_NAMES: [Car]\nDATA_CONFIG: {}\nMODEL:\n  NAME: X\nOPTIMIZATION:\n  LR: 0\n"
    assert "m.yaml, line 6: OPTIMIZATION.LR must be" in tool_fails_on(tmp_path / "m.yaml", text, capsys)


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path, capsys: Any, root: Path) -> None:
    (tmp_path / "out").write_text("a file")
    cfg = root / "cfgs" / "synthetic_models" / "pointpillar.yaml"
    assert main(["train", "--cfg_file", str(cfg), "--output_dir", str(tmp_path / "out")]) == 1
    assert "--output_dir must be a folder to write to" in capsys.readouterr().out


def test_hooks_of_openpcdet_are_refused(tmp_path: Path, capsys: Any) -> None:
    text = "HOOK:\n  DisableAugmentationHook: {NUM_LAST_EPOCHS: 1}\n"
    said = tool_fails_on(tmp_path / "m.yaml", text, capsys)
    assert "line 1: HOOK must be a list" in said and "DisableAugmentationHook" in said
