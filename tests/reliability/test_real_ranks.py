"""Two real processes and real signals: all ranks stop after the same step; a hung rank is named."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from engine_toy import assert_same_state
from real_ranks import (
    children,
    final_weights,
    lives,
    processes,
    start_agents,
    start_ranks,
    start_torchrun,
    until,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two ranks and 40 iterations that nothing happens to."""
    out = tmp_path_factory.mktemp("unbroken")
    with processes(out) as made:
        start_ranks(made, out, 40)
        assert made.codes() == [0, 0], made.text
    return out


def test_a_signal_to_one_rank_stops_both_after_the_same_step_and_they_resume_exactly(
    unbroken: Path, tmp_path: Path
) -> None:
    with processes(tmp_path) as made:
        start_ranks(made, tmp_path, 40, step_s=0.1)
        made.printed("rank 1 iteration 3\n")
        made.started[1].send_signal(signal.SIGTERM)
        assert made.codes() == [143, 143], made.text
        last = [max(map(int, re.findall(rf"rank {rank} iteration (\d+)\n", made.text))) for rank in (0, 1)]
        assert last[0] == last[1] and f"Stopped by SIGTERM. rank 0 iteration {last[0]}." in made.text
        assert "Traceback" not in made.text and made.text.count("Stopped by") == 1
    with processes(tmp_path) as made:
        start_ranks(made, tmp_path, 40)
        assert made.codes() == [0, 0], made.text
    assert_same_state(final_weights(tmp_path), final_weights(unbroken))


def test_a_rank_that_hangs_is_named_by_the_other_which_ends(tmp_path: Path) -> None:
    """Rank 0, which holds the store; test_heartbeats.py has the others."""
    with processes(tmp_path) as made:
        start_ranks(made, tmp_path, 4000, timeout=5)  # a loaded machine answers later than after a second
        made.printed("rank 1 iteration 3\n")
        made.started[0].send_signal(signal.SIGSTOP)
        assert made.started[1].wait(60) == 1
        assert re.search(r"--timeout \(5 s\), but rank 0 ", made.text) and "Traceback" not in made.text


def test_ranks_whose_torchrun_was_killed_write_a_checkpoint_and_end(tmp_path: Path) -> None:
    with processes(tmp_path) as made:
        agent = start_torchrun(made, tmp_path, 4000)
        made.printed("rank 1 iteration 3\n")
        ranks = children(agent)
        os.kill(agent, signal.SIGKILL)
        until(lambda: not any(map(lives, ranks)), "the end of the ranks")
        assert "torchrun has ended" in made.text and "Traceback" not in made.text
        assert (tmp_path / "ckpt" / "latest_model.pth").is_file()


def test_a_killed_rank_is_restarted_before_the_first_checkpoint_and_in_the_last_steps(
    unbroken: Path, tmp_path: Path
) -> None:
    with processes(tmp_path) as made:
        agent = start_torchrun(made, tmp_path, 40)
        for line in ("rank 1 iteration 1\n", "rank 1 iteration 39\n"):
            made.printed(line)
            os.kill(children(agent)[1], signal.SIGKILL)
        assert made.codes() == [0], made.text
    assert_same_state(final_weights(tmp_path), final_weights(unbroken))


def test_two_agents_start_all_ranks_again_where_one_is_killed(unbroken: Path, tmp_path: Path) -> None:
    """`torchrun --nnodes 2 --rdzv-backend c10d`, as on two machines."""
    with processes(tmp_path) as made:
        agents = start_agents(made, tmp_path, 40)
        made.printed("rank 1 iteration 5\n")
        os.kill(children(agents[1])[0], signal.SIGKILL)
        assert made.codes() == [0, 0], made.text
    assert_same_state(final_weights(tmp_path), final_weights(unbroken))
