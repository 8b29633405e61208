"""``begin`` and ``verify`` in a training loop of the user's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from standin_runs import Standin, batch_of
from torch import nn

from pcdet_freeze import CertificateError, FreezeError, openpcdet


@pytest.fixture
def model(standin: Standin) -> Any:
    openpcdet.install()
    return standin.build("second", ["backbone_3d"])


def step(model: nn.Module, optimizer: Any) -> None:
    optimizer.zero_grad()
    model(batch_of())[0]["loss"].backward()
    optimizer.step()


def test_h7_begin_removes_frozen_parameters_from_the_optimizer(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    openpcdet.begin(model, optimizer)
    known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    assert known == {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def test_p1_a_loop_between_begin_and_verify_keeps_the_frozen_state(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    openpcdet.begin(model, optimizer)
    for _ in range(3):
        step(model, optimizer)
    openpcdet.verify(model)
    moved = {
        name.split(".")[0] for name, value in model.state_dict().items() if not value.equal(before[name])
    }
    assert "dense_head" in moved and "backbone_3d" not in moved
    model.backbone_3d.conv1[0].weight.data += 1
    with pytest.raises(CertificateError, match=r"backbone_3d\.conv1\.0\.weight"):
        openpcdet.verify(model)


def test_p5_begin_rejects_an_optimizer_that_lacks_a_trainable_parameter(model: Any) -> None:
    optimizer = torch.optim.SGD(model.backbone_2d.parameters(), lr=0.1)
    with pytest.raises(FreezeError, match=r"in no group .*dense_head"):
        openpcdet.begin(model, optimizer)


def test_p5_the_first_step_after_begin_is_audited(model: Any) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    weight = model.backbone_3d.conv1[0].weight
    optimizer.register_step_pre_hook(lambda *_: setattr(weight, "grad", torch.zeros_like(weight)))
    openpcdet.begin(model, optimizer)
    with pytest.raises(FreezeError, match=r"backbone_3d\.conv1\.0\.weight is frozen, but has a gradient"):
        step(model, optimizer)


def test_p4_begin_rejects_frozen_weights_that_were_never_loaded(standin: Standin) -> None:
    openpcdet.install()
    model = standin.build("second", ["backbone_3d"], ALLOW_RANDOM=False)
    with pytest.raises(FreezeError, match=r"never loaded[\s\S]*backbone_3d"):
        openpcdet.begin(model, torch.optim.SGD(model.parameters(), lr=0.1))


def test_r3_begin_rejects_a_schedule(standin: Standin) -> None:
    openpcdet.install()
    schedule = [{"EPOCH": 1, "TRAIN": ["backbone_3d.conv1"]}]
    model = standin.build("second", ["backbone_3d"], SCHEDULE=schedule)
    with pytest.raises(FreezeError, match=r"FREEZE\.SCHEDULE"):
        openpcdet.begin(model, torch.optim.SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("call", [lambda m: openpcdet.begin(m, None), openpcdet.verify])
def test_a_model_that_the_plugin_did_not_freeze_is_an_error(standin: Standin, call: Any) -> None:
    openpcdet.install()
    with pytest.raises(FreezeError, match="install"):
        call(standin.build("second"))
