"""The plugin's own waits for the device, and steps that a GradScaler skips, in a loop of the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from grad_scaler import FusedSGD
from pillar_detector import pillar_detector, run
from standin_runs import Standin, batch_of
from waits import PackageWaits

from pcdet_freeze import CertificateError, openpcdet
from pcdet_freeze.integrations.openpcdet.session import session_of


@pytest.fixture
def training(standin: Standin) -> Any:
    """(model, optimizer) after ``begin``."""
    openpcdet.install()
    model = standin.build("second", ["backbone_3d"])
    optimizer = FusedSGD(model.parameters(), lr=0.01)
    openpcdet.begin(model, optimizer)
    return model, optimizer


def step(model: Any, optimizer: Any, number: int = 0) -> None:
    optimizer.zero_grad()
    model(batch_of(number))[0]["loss"].backward()
    optimizer.step()


def waits_of_step(training: Any, number: int) -> dict[str, int]:
    with PackageWaits() as waits:
        step(*training, number)
    return dict(waits.lines)


def test_after_the_first_twenty_steps_the_plugin_waits_for_no_device(training: Any) -> None:
    waits = [waits_of_step(training, number) for number in range(30)]
    assert waits[0], "the checks of the first step read results"
    assert waits[20:] == [{}] * 10


def test_f5_the_relative_errors_of_a_plan_are_read_in_four_copies(standin: Standin) -> None:
    """One for each quick form on a made-up batch, one for all layers, one for the outputs of the prefix."""
    openpcdet.install()
    model = pillar_detector(standin, ["vfe", "backbone_2d"], {"FUSE": True})
    with PackageWaits() as waits:
        run(model)
    of_errors = {line: number for line, number in waits.lines.items() if line.startswith("tensors.py")}
    assert sum(of_errors.values()) == 4 and all("tolist" in line for line in of_errors)
    assert len(session_of(model).prefix.replanner.plan.folds) > 3


def test_p1_the_first_step_is_the_first_one_that_a_scaler_does_not_skip(training: Any) -> None:
    """A GradScaler calls ``step()`` of a fused optimizer in any case, with the verdict in ``found_inf``."""
    model, optimizer = training
    for found_inf in (1.0, 1.0):
        optimizer.found_inf = torch.tensor(found_inf)
        step(model, optimizer)
    optimizer.found_inf = torch.tensor(0.0)
    model.backbone_3d.conv1[0].weight.data += 1
    with pytest.raises(CertificateError, match=r"after the first step[\s\S]*backbone_3d\.conv1\.0\.weight"):
        step(model, optimizer)
