"""What the operators' comparison compares."""

from __future__ import annotations

import pytest
import torch
from bench_toys import small_cfg, subject

from pcdet_freeze.bench import measure_operators
from pcdet_freeze.bench.costs.operators import ASSIGN, FULL, WINDOW
from pcdet_freeze.errors import ConfigError


def test_windows_are_compared_with_all_anchors_of_the_model_and_both_give_the_same() -> None:
    model, batch = subject(small_cfg())
    rows = measure_operators(model.dense_head, batch["gt_boxes"], rounds=1)
    assert [row["variant"] for row in rows[:3]] == [FULL, WINDOW, ASSIGN]
    assert rows[0]["time_ratio"] == 1 and all(row["equal"] for row in rows[:3])
    assert rows[0]["anchors"] == 16 * 16 * 6
    assert all(row["seconds"] > 0 for row in rows) and len(rows) == 5


def test_a_head_without_anchors_is_an_error_that_names_it() -> None:
    with pytest.raises(ConfigError, match=r"dense_head with anchors; got Linear"):
        measure_operators(torch.nn.Linear(1, 1), torch.zeros(1, 1, 8), rounds=1)
