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


DROPPED = [
    "backbone_3d.token",
    "backbone_3d.stage_0.0.self_attn.in_proj_weight",
    "backbone_3d.stage_0.0.self_attn.in_proj_bias",
]
"""of the toy dsvt"""


def names_in(model: nn.Module, optimizer: Any) -> set[str]:
    known = parameters_of(optimizer)
    return {name for name, parameter in model.named_parameters() if id(parameter) in known}


def lines_about_dropped(caplog: Any) -> list[str]:
    return [r.getMessage() for r in caplog.records if "OptimWrapper does not collect" in r.getMessage()]


def test_p5_parameters_that_adam_onecycle_drops_are_named_once_and_left_out(
    standin: Standin, caplog: Any
) -> None:
    model = standin.build("dsvt", ["backbone_2d"])
    assert dropped_by(model) == DROPPED
    optimizer = standin.optimizer(model)
    openpcdet.begin(model, optimizer)
    (line,) = lines_about_dropped(caplog)
    assert "3 trainable parameters" in line and all(name in line for name in DROPPED)
    assert "FREEZE.TRAIN_DROPPED: True" in line
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert names_in(model, optimizer) == trainable - set(DROPPED)


def test_p5_train_dropped_adds_the_parameters_that_adam_onecycle_drops(standin: Standin, caplog: Any) -> None:
    caplog.set_level("INFO")
    model = standin.build("dsvt", ["backbone_2d"], TRAIN_DROPPED=True)
    optimizer = standin.optimizer(model)
    openpcdet.begin(model, optimizer)
    (line,) = lines_about_dropped(caplog)
    assert all(name in line for name in DROPPED)
    assert parameters_of(optimizer) == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(("option", "trains"), [("False", False), ("True", True)])
def test_p5_dropped_parameters_train_with_train_dropped_only(
    standin: Standin, option: str, trains: bool
) -> None:
    """By default a frozen run trains what a run without the plugin trains."""
    words = frozen_words("backbone_2d.deblocks", *RANDOM, "MODEL.FREEZE.TRAIN_DROPPED", option)
    run = standin.train("dsvt", *words)
    assert run.code == 0, run.err
    first, last = (run.state(epoch)["model_state"] for epoch in (1, 2))
    assert [not torch.equal(first[key], last[key]) for key in DROPPED] == [trains] * 3
    assert not torch.equal(first["dense_head.conv_cls.weight"], last["dense_head.conv_cls.weight"])


def test_p5_a_frozen_run_ends_like_one_that_is_frozen_by_hand(standin: Standin) -> None:
    run = standin.train("dsvt", *frozen_words("backbone_2d.deblocks", *RANDOM), tag="frozen")
    standin.prepare = lambda: freeze_by_hand(standin, "backbone_2d.deblocks")
    by_hand = standin.train("dsvt", tag="hand", plugin=False)
    assert run.losses == by_hand.losses and len(run.losses) == 8
    mine, theirs = (r.state()["model_state"] for r in (run, by_hand))
    assert all(torch.equal(mine[key], value) for key, value in theirs.items())


def freeze_by_hand(standin: Standin, name: str) -> None:
    """``requires_grad=False``, and eval mode whatever ``train()`` says."""
    models = standin.module("pcdet.models")
    build = models.build_network

    def build_frozen(**kwargs: Any) -> nn.Module:
        model = build(**kwargs)
        frozen = model.get_submodule(name).eval().requires_grad_(False)
        for module in frozen.modules():
            module.train = lambda mode=True, module=module: module
        return model

    models.build_network = build_frozen


@pytest.mark.parametrize(("option", "trains"), [("False", False), ("True", True)])
def test_p5_dropped_parameters_that_a_schedule_unfreezes_train_with_train_dropped_only(
    standin: Standin, option: str, trains: bool
) -> None:
    schedule = ["MODEL.FREEZE.SCHEDULE", "[{EPOCH: 1, TRAIN: [backbone_3d]}]"]
    words = frozen_words("backbone_3d", *RANDOM, *schedule, "MODEL.FREEZE.TRAIN_DROPPED", option)
    run = standin.train("dsvt", *words)
    assert run.code == 0, run.err
    first, last = (run.state(epoch)["model_state"] for epoch in (1, 2))
    assert [not torch.equal(first[key], last[key]) for key in DROPPED] == [trains] * 3
    key = "backbone_3d.stage_0.0.self_attn.out_proj.weight"
    assert not torch.equal(first[key], last[key])
    assert run.err.count("OptimWrapper does not collect 3 trainable parameters") == 1


def test_p5_train_dropped_without_a_list_is_a_warning(standin: Standin, caplog: Any) -> None:
    standin.build("dsvt", [], TRAIN_DROPPED=True)
    assert any("TRAIN_DROPPED has no effect" in record.getMessage() for record in caplog.records)


def test_p5_train_dropped_changed_on_resume_is_an_error_that_names_it(standin: Standin) -> None:
    words = frozen_words("backbone_2d", *RANDOM, "MODEL.FREEZE.TRAIN_DROPPED")
    standin.train("dsvt", "--epochs", "1", *words, "True")
    run = standin.train("dsvt", "--epochs", "2", *words, "False")
    assert run.code == 1 and "FREEZE.TRAIN_DROPPED" in run.err and run.losses == []


def test_p5_a_frozen_parameter_is_not_reported_as_dropped(standin: Standin, caplog: Any) -> None:
    standin.optimizer(standin.build("dsvt", ["backbone_3d"]))
    assert not lines_about_dropped(caplog)


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
