"""Two gloo processes: an error that only one rank finds stops both, with one message."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from two_processes import torchrun, worker

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("proofs")
    done = torchrun(worker("proofs_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize(
    ("run", "words", "iterations"),
    [
        ("h3", "vfe.0.1 (DrawsOnOne) is not deterministic", 0),
        ("h11", "branch: add 'branch' (rank 1)", 0),
        ("unlabelled", "batch has no labels for roi_head: with several processes", 0),
        ("p5", "vfe.0.weight is frozen, but has a gradient (rank 1)", 0),
        ("p2", "rank 1: dense_head: differs from the start by proposals", 2),
    ],
)
def test_h3_h11_p2_p5_an_error_on_rank_1_alone_stops_both_ranks(
    two_ranks: Any, run: str, words: str, iterations: int
) -> None:
    first, second = (found[run] for found in two_ranks)
    assert first == second
    assert words in first[1] and first[0] == iterations


def test_p2_h11_p5_a_correct_run_passes(two_ranks: Any) -> None:
    assert [found["fine"] for found in two_ranks] == [(2, "no error")] * 2
