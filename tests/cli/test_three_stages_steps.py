"""Steps of ``pcdet-freeze three-stages`` run in this process and end as the commands do."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from pcdet_freeze.cli.three_stages import StepError, step


@pytest.fixture
def ends_with(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Exit codes of a command ``toy`` with the option --size."""
    codes: list[Any] = []
    seen = SimpleNamespace(
        add_arguments=lambda parser: parser.add_argument("--size", type=int),
        run=lambda args: codes.pop(0) + args.size,
    )
    monkeypatch.setitem(sys.modules, "pcdet_freeze.cli.toy", seen)
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
