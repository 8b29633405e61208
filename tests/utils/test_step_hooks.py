"""Step hooks run whether ``torch.compile`` is called before they are registered or after."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from grad_scaler import FusedSGD
from torch import nn
from torch.optim.lr_scheduler import StepLR

from pcdet_freeze.utils.step_hooks import FirstStep, keep_step_hooks, runs_step_hooks


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


def test_the_first_step_is_one_that_a_scaler_does_not_skip_in_a_fused_optimizer() -> None:
    optimizer, first = FusedSGD(nn.Linear(2, 1).parameters()), FirstStep()
    first.wait_for(optimizer)
    seen = []
    for found_inf in (1.0, 1.0, 0.0, 0.0):
        optimizer.found_inf = torch.tensor(found_inf)  # as GradScaler.step does
        optimizer.step()
        seen.append(first.has_come())
    assert seen == [False, False, True, False]


def test_the_first_step_is_one_of_the_optimizer_that_was_given_last() -> None:
    old, new, first = sgd(), sgd(), FirstStep()
    first.wait_for(old)
    first.wait_for(new)
    old.step()
    assert not first.has_come()
    new.step()
    assert first.has_come() and not new._optimizer_step_post_hooks
