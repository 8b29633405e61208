"""Step hooks run whether ``torch.compile`` is called before they are registered or after."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import StepLR

from pcdet_freeze.utils.step_hooks import keep_step_hooks, runs_step_hooks


def steps(optimizer: torch.optim.Optimizer) -> list[int]:
    """Grows by one at each step that runs the step hooks."""
    seen: list[int] = []
    keep_step_hooks(optimizer)
    optimizer.register_step_pre_hook(lambda *_: seen.append(1))
    return seen


def sgd() -> torch.optim.Optimizer:
    return torch.optim.SGD(nn.Linear(2, 1).parameters(), lr=0.1)


PROGRAM = """
import torch
from test_step_hooks import sgd, steps
optimizer = sgd()
before = steps(optimizer)
torch.compile(torch.nn.Linear(2, 1), backend="eager")(torch.ones(1, 2))
later = sgd()
after = steps(later)
optimizer.step()
later.step()
print(len(before), len(after))
"""


def test_p5_step_hooks_run_whether_registered_before_or_after_the_first_compile() -> None:
    """In a process of its own, since torch 2.2 changes the optimizers at the first torch.compile."""
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path!r}\n{PROGRAM}"],
        capture_output=True,
        text=True,
        check=False,
        cwd=__file__.rpartition("/")[0],
    )
    assert run.stdout.split() == ["1", "1"], run.stderr


@pytest.mark.parametrize("order", ["scheduler first", "scheduler last"])
def test_a_scheduler_counts_the_steps_and_the_hooks_run_once(order: str) -> None:
    optimizer = sgd()
    if order == "scheduler first":
        scheduler = StepLR(optimizer, 1)
    seen = steps(optimizer)
    keep_step_hooks(optimizer)  # a second call changes nothing
    if order == "scheduler last":
        scheduler = StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()  # warns where the optimizer's steps were not counted
    assert seen == [1]


def test_a_function_that_wraps_the_step_of_torch_runs_the_hooks() -> None:
    optimizer = sgd()
    keep_step_hooks(optimizer)
    assert runs_step_hooks(optimizer.step) and not runs_step_hooks(len)
