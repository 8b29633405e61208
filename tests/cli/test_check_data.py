"""The command `check-data`: report, JSON, pictures, exit code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tool_runs import CFG, SMALL

from pcdet_freeze.__main__ import main

LOW = ["DATA_CONFIG.POINT_CLOUD_RANGE", "[-25.6, -25.6, -5.5, 25.6, 25.6, -1.5]"]
"""a range that ends below the centres of all boxes"""


def check(*flags: str, sets: list[str] | None = None) -> int:
    base = ["--cfg_file", str(CFG), "--workers", "0"]
    return main(["check-data", *base, *flags, "--set", *SMALL, *(sets or [])])


def test_data_that_fit_are_reported_with_exit_code_0(tmp_path: Path, capsys: Any) -> None:
    assert check("--out", str(tmp_path)) == 0
    text = capsys.readouterr().out
    assert "6, of which 0 cannot be read" in text and "ERROR" not in text and "Car" in text
    assert not list(tmp_path.iterdir())


def test_a_training_that_would_be_pointless_is_exit_code_1_with_pictures(tmp_path: Path, capsys: Any) -> None:
    assert check("--json", "--pictures", "2", "--out", str(tmp_path), sets=LOW) == 1
    plain = json.loads(capsys.readouterr().out)
    assert plain["pointless"] and any(found["kind"] == "boxes_outside" for found in plain["findings"])
    pictures = sorted(map(str, tmp_path.glob("*.png")))
    assert sorted(plain["pictures"]) == pictures and len(pictures) == 2


@pytest.mark.parametrize("flags", [["--split", "test", "--pictures", "0"]])
def test_the_test_frames_can_be_checked(flags: list[str], capsys: Any) -> None:
    assert check(*flags) == 0
    assert capsys.readouterr().out.startswith("frames        3,")
