"""``bench --what training`` and ``allocator``: every second of a process is counted once."""

from __future__ import annotations

from typing import Any

import pytest
from bench_toys import SMALL

from pcdet_freeze.bench.whole_runs import whole_training
from pcdet_freeze.bench.whole_runs.training_tables import allocator_table, parts_table
from pcdet_freeze.bench.whole_runs.whole_training import (
    MODEL,
    WholeTraining,
    measure_allocator,
    measure_parts,
)
from pcdet_freeze.utils.allocator import SWITCH


@pytest.mark.slow
def test_the_parts_of_a_training_add_up_to_its_wall_time() -> None:
    words = [*SMALL, "MODEL.FREEZE.ALLOW_RANDOM", "True"]
    options = {"max_iters": 3, "workers": 1, "batch_size": 1, "no_savings": True}
    rows = measure_parts(WholeTraining("bench/pointpillar.yaml", words, options))
    assert rows[0]["part"] == MODEL and rows[0]["iterations"] == 3
    assert {"CheckpointHook", "MultiTaskFreezeHook", "first batch"} < {row["part"] for row in rows}
    assert sum(row["share"] for row in rows) == pytest.approx(1, abs=0.02)
    assert sum(row["cpu_share"] for row in rows) == pytest.approx(1)
    assert 0 < rows[0]["to_first_step"] < rows[0]["wall"] and rows[0]["peak_rss"] > 1e8
    assert "interpreter, imports" in parts_table(rows)


def test_the_allocator_is_compared_in_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def train_once(training: WholeTraining, variables: dict[str, str]) -> dict[str, Any]:
        asked.append(variables[SWITCH])
        slow = 2.0 if asked[-1] == "0" else 1.0
        keys = ("user", "system", "faults", "peak_rss", "worker_rss", "step_seconds")
        return dict.fromkeys(keys, slow)

    monkeypatch.setattr(whole_training, "train_once", train_once)
    rows = measure_allocator(WholeTraining("a.yaml"), rounds=3)
    assert asked == ["0", "1", "1", "0", "0", "1"]
    assert [row["time_ratio"] for row in rows] == [1.0, 0.5]
    assert "0.500" in allocator_table(rows)
