"""A compiled variant has a time only where it ran compiled."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_toys import small_cfg, subject

from pcdet_freeze.bench import build_contenders
from pcdet_freeze.bench.steps import compare_steps
from pcdet_freeze.bench.tables import step_table

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def contenders() -> list[Any]:
    cfg = small_cfg()
    model, batch = subject(cfg)
    return build_contenders(model, cfg, batch, ["compile"])


def test_steps_that_ran_compiled_are_timed(contenders: list[Any]) -> None:
    none, compiled = compare_steps(contenders, rounds=2)
    assert "untimed" not in compiled and compiled["time_ratio"] > 0
    assert compiled["loss"] == pytest.approx(none["loss"], rel=1e-3)


def test_steps_that_fell_back_are_counted_and_have_no_time(contenders: list[Any]) -> None:
    with torch.compiler.set_stance("force_eager"):
        rows = compare_steps(contenders, rounds=2)
    assert "untimed" not in rows[0] and rows[1]["seconds"] is None and rows[1]["time_ratio"] is None
    assert rows[1]["untimed"] == "6 calls ran uncompiled"  # three blocks in two rounds
    assert "compile was not timed: 6 calls ran uncompiled" in step_table(rows)
    assert max(map(len, step_table(rows).splitlines())) <= 100


def test_without_anything_to_compile_there_is_no_time_either() -> None:
    cfg = small_cfg()
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = ["vfe"]
    model, batch = subject(cfg)
    rows = compare_steps(build_contenders(model, cfg, batch, ["compile"]), rounds=1)
    assert rows[1]["untimed"] == "no part of the prefix takes one tensor and gives one"
