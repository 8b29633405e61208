"""Steps of ``pcdet-freeze three-stages`` run in this process and end as the commands do."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from html_checks import Page

from pcdet_freeze.cli.three_stages import STAGES, StepError, _write_report, step
from pcdet_freeze.report.record import RunRecord


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Exit codes of a command ``toy`` with the option --size."""
    codes: list[Any] = []
    seen = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--size", type=int),
        run=lambda args: codes.pop(0) + args.size,
    )
    for folder in ("cli", "cli.arguments"):
        monkeypatch.setitem(sys.modules, f"pcdet_freeze.{folder}.toy", seen)
    return codes


def test_a_step_is_printed_as_it_is_typed_and_gets_its_words(ends_with: list[Any], capsys: Any) -> None:
    ends_with += [0]
    assert step("toy", "--size", "0") == 0
    assert "$ pcdet-freeze toy --size 0\n" in capsys.readouterr().out


def test_a_failed_step_ends_the_stages_unless_its_code_is_an_answer(ends_with: list[Any]) -> None:
    ends_with += [0, 0]
    assert step("toy", "--size", "1", check=False) == 1
    with pytest.raises(StepError, match="exit code 1"):
        step("toy", "--size", "1")


def test_ctrl_c_in_a_step_ends_the_stages(ends_with: list[Any]) -> None:
    ends_with += [130]
    with pytest.raises(KeyboardInterrupt):
        step("toy", "--size", "0", check=False)


def test_the_stages_end_with_one_page_of_all_of_them(tmp_path: Path) -> None:
    for number, cfg in enumerate(STAGES.values()):
        folder = tmp_path / "synthetic_models" / cfg / "demo"
        folder.mkdir(parents=True)
        record = RunRecord(name=cfg, iterations=number, after={"mAP": 0.125})
        (folder / "report.json").write_text(record.to_json())
    found = Page(_write_report(tmp_path, "boxes  3512").read_text())
    assert found.faults == [] and found.count("details", class_="stage") == 3
    assert all(cfg in found.text for cfg in STAGES.values()) and "boxes 3512" in found.text
