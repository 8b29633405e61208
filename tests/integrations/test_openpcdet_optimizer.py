"""The optimizer with the plugin: no frozen parameter in it (H7), every trainable one in it (P5)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from standin_runs import RANDOM, Standin, batch_of, frozen_words
from torch import nn

from pcdet_freeze import FreezeError, openpcdet


@pytest.fixture(autouse=True)
def plugin(standin: Standin) -> None:
    openpcdet.install()


def parameters_of(optimizer: Any) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


@pytest.mark.parametrize("kind", ["adam_onecycle", "adam"])
def test_h7_frozen_parameters_are_in_no_group_and_trainable_ones_in_one(standin: Standin, kind: str) -> None:
    model = standin.build("pv_rcnn", ["backbone_3d", "backbone_2d.blocks"])
    optimizer = standin.optimizer(model, kind)
    known = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in known} == {id(p) for p in model.parameters() if p.requires_grad}
    assert len(known) == len(parameters_of(optimizer))
    assert not any(p.requires_grad for p in model.backbone_3d.parameters())


def test_h7_weight_decay_and_momentum_do_not_change_frozen_parameters(standin: Standin) -> None:
    run = standin.train("pv_rcnn", *frozen_words("backbone_3d,backbone_2d", *RANDOM,
                                                 "OPTIMIZATION.WEIGHT_DECAY", "0.5"))  # fmt: skip
    first, last = (run.state(epoch)["model_state"] for epoch in (1, 2))
    frozen = [key for key in first if key.startswith("backbone")]
    assert frozen and all(torch.equal(first[key], last[key]) for key in frozen)


def dropped_by(model: nn.Module) -> list[str]:
    """Trainable parameters that belong to a module with children."""
    own = ((n, m) for n, m in model.named_modules() if any(True for _ in m.children()))
    return [f"{n}.{name}" for n, m in own for name, p in m.named_parameters(recurse=False) if p.requires_grad]


def test_p5_parameters_that_adam_onecycle_drops_are_named_and_trained(standin: Standin, caplog: Any) -> None:
    model = standin.build("dsvt", ["backbone_2d"])
    names = dropped_by(model)
    assert names == [
        "backbone_3d.token",
        "backbone_3d.self_attn.in_proj_weight",
        "backbone_3d.self_attn.in_proj_bias",
    ]
    optimizer = standin.optimizer(model)
    (line,) = [r.getMessage() for r in caplog.records if "did not receive" in r.getMessage()]
    assert (
        all(name in line for name in names) and "OptimWrapper did not receive 3 trainable parameters" in line
    )
    assert parameters_of(optimizer) == {id(p) for p in model.parameters() if p.requires_grad}


def test_p5_dropped_parameters_train_with_the_plugin_only(standin: Standin) -> None:
    key = "backbone_3d.token"
    plain = standin.train("dsvt", tag="plain", plugin=False)
    first, last = (plain.state(epoch)["model_state"][key] for epoch in (1, 2))
    assert torch.equal(first, last)
    run = standin.train("dsvt", *frozen_words("backbone_2d.deblocks", *RANDOM), tag="frozen")
    first, last = (run.state(epoch)["model_state"][key] for epoch in (1, 2))
    assert run.code == 0 and not torch.equal(first, last)


def test_p5_a_frozen_parameter_is_not_reported_as_dropped(standin: Standin, caplog: Any) -> None:
    standin.optimizer(standin.build("dsvt", ["backbone_3d"]))
    assert not [r for r in caplog.records if "did not receive" in r.getMessage()]


def test_p5_another_optimizer_that_lacks_a_parameter_is_an_error(standin: Standin) -> None:
    model = standin.build("second", ["backbone_3d"])
    optimizer = torch.optim.SGD(
        [p for n, p in model.named_parameters() if p.requires_grad and "conv_cls" not in n], 0.1
    )
    with pytest.raises(FreezeError, match=r"in no group .*: dense_head.conv_cls.weight"):
        model(batch_of())
    assert optimizer.param_groups


def test_h7_frozen_parameters_leave_another_optimizer_before_its_first_step(standin: Standin) -> None:
    model = standin.build("second", ["backbone_3d"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, weight_decay=0.5)
    before = {key: value.clone() for key, value in model.backbone_3d.state_dict().items()}
    for step in range(3):
        optimizer.zero_grad()
        model(batch_of(step))[0]["loss"].backward()
        optimizer.step()
    assert all(torch.equal(before[key], value) for key, value in model.backbone_3d.state_dict().items())
    assert parameters_of(optimizer) == {id(p) for p in model.parameters() if p.requires_grad}


def test_t3_a_list_without_trainable_parameters_is_an_error_at_build(standin: Standin) -> None:
    with pytest.raises(FreezeError, match="every head is fully frozen"):
        standin.build("second", ["*"])
    with pytest.raises(FreezeError, match="every parameter of the model is frozen"):
        standin.build("second", ["*", "!dense_head", "dense_head.*"])
