"""FREEZE.SCHEDULE inside OpenPCDet's loop (R3)."""

from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from pillar_detector import pillar_detector, run
from standin_runs import RANDOM, Run, Standin, batch_of, frozen_words

from pcdet_freeze import FreezeError, openpcdet
from pcdet_freeze.integrations.openpcdet.session import session_of

LIST = "backbone_3d,backbone_2d"


def scheduled(*phases: str) -> list[str]:
    return frozen_words(LIST, *RANDOM, "MODEL.FREEZE.SCHEDULE", f"[{', '.join(phases)}]")


FREE_BLOCKS = "{EPOCH: 1, TRAIN: [backbone_2d.blocks], LR_SCALE: 0.1}"
FREE_DEBLOCKS = "{EPOCH: 2, TRAIN: [backbone_2d.deblocks]}"


def moved(run: Run, first: int, last: int) -> set[str]:
    """Children of the listed modules whose state differs between two epochs."""
    before, after = (run.state(epoch)["model_state"] for epoch in (first, last))
    keys = [k for k in before if k.startswith("backbone") and not torch.equal(before[k], after[k])]
    return {".".join(key.split(".")[:2]) for key in keys}


def test_r3_modules_are_unfrozen_at_their_epoch(standin: Standin) -> None:
    run = standin.train("pv_rcnn", "--epochs", "3", *scheduled(FREE_BLOCKS, FREE_DEBLOCKS))
    assert run.code == 0, run.err
    assert moved(run, 1, 2) == {"backbone_2d.blocks"}
    assert moved(run, 2, 3) == {"backbone_2d.blocks", "backbone_2d.deblocks"}
    assert (
        "after 1 epoch, backbone_2d.blocks begins to train (8 parameter tensors, learning rate x 0.1)"
        in run.err
    )


def test_r3_modules_that_stay_frozen_stay_certified(standin: Standin) -> None:
    run = standin.train("pv_rcnn", "--epochs", "2", *scheduled(FREE_BLOCKS))
    names = run.state(2)["pcdet_freeze"]["freeze"]["certificate"]["digests"]
    assert {".".join(name.split(".")[:2]) for name in names} == {
        "backbone_3d.conv_input", "backbone_3d.conv1", "backbone_2d.deblocks",
    }  # fmt: skip
    assert "certificate intact" in run.err


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("version", ["8caccce", "0.5.2"])
def test_r3_the_schedule_survives_a_resume(standin: Standin, stop: int, version: str) -> None:
    standin.use(version)
    words = scheduled(FREE_BLOCKS, FREE_DEBLOCKS)
    standin.train("pv_rcnn", "--epochs", str(stop), *words)
    run = standin.train("pv_rcnn", "--epochs", "3", *words)
    assert run.code == 0, run.err
    assert f"start training from epoch {stop}" in run.err
    assert moved(run, 2, 3) == {"backbone_2d.blocks", "backbone_2d.deblocks"}
    assert moved(run, 1, 2) == {"backbone_2d.blocks"}


def test_r3_another_schedule_on_resume_is_an_error(standin: Standin) -> None:
    standin.train("pv_rcnn", "--epochs", "1", *scheduled(FREE_BLOCKS))
    run = standin.train("pv_rcnn", "--epochs", "2", *scheduled(FREE_DEBLOCKS.replace("2,", "1,")))
    assert run.code == 1 and "- SCHEDULE" in run.err and "+ SCHEDULE" in run.err


def test_r3_lr_scale_scales_the_steps_of_added_parameters(standin: Standin) -> None:
    """The first step of an added parameter is LR_SCALE times as long as without a scale."""
    steps = {}
    for scale in ("1.0", "0.25"):
        phase = f"{{EPOCH: 1, TRAIN: [backbone_2d.blocks], LR_SCALE: {scale}}}"
        batch = ("--batch_size", "16")  # one step an epoch
        run = standin.train("second", "--epochs", "2", *batch, *scheduled(phase), tag=f"x{scale}")
        first, last = (run.state(epoch)["model_state"]["backbone_2d.blocks.0.0.weight"] for epoch in (1, 2))
        steps[scale] = last - first
    assert steps["1.0"].abs().min() > 0
    assert torch.allclose(steps["0.25"], steps["1.0"] * 0.25, rtol=1e-3, atol=1e-6)


def test_r3_lr_scale_of_a_module_scales_its_steps_from_the_first_one_on(standin: Standin) -> None:
    weights = []
    for scale in ("1.0", "0.25", "1e-9"):
        words = frozen_words(LIST, *RANDOM, "MODEL.FREEZE.LR_SCALE", f"{{dense_head: {scale}}}")
        run = standin.train("second", "--epochs", "1", "--batch_size", "16", *words, tag=f"x{scale}")
        assert run.code == 0, run.err
        state = run.state(1)["model_state"]
        weights.append(next(value for name, value in state.items() if name.startswith("dense_head.")))
    whole, quarter = weights[0] - weights[2], weights[1] - weights[2]
    assert whole.abs().min() > 0 and torch.allclose(quarter, whole * 0.25, rtol=1e-3, atol=1e-6)


def test_r3_added_parameters_enter_the_two_groups_of_the_optimizer(standin: Standin) -> None:
    run = standin.train("pv_rcnn", "--epochs", "2", *scheduled(FREE_BLOCKS))
    groups = [
        [len(group["params"]) for group in run.state(epoch)["optimizer_state"]["param_groups"]]
        for epoch in (1, 2)
    ]
    assert [b - a for a, b in zip(*groups, strict=True)] == [4, 4]  # two blocks: linear | norm


def test_r3_a_phase_after_the_end_of_the_run_is_a_warning(standin: Standin) -> None:
    run = standin.train("pv_rcnn", "--epochs", "1", *scheduled(FREE_BLOCKS))
    assert run.code == 0 and "not in this run of 1 epochs: after 1 epoch, backbone_2d.blocks" in run.err


def test_r3_a_schedule_of_a_trainable_module_is_an_error_before_training(standin: Standin) -> None:
    run: Any = standin.train("pv_rcnn", *scheduled("{EPOCH: 1, TRAIN: [pfe]}"))
    assert run.code == 1 and "TRAIN must name what the list freezes" in run.err and run.losses == []


def test_r3_a_loop_without_train_model_cannot_use_a_schedule(standin: Standin) -> None:
    openpcdet.install()
    model = standin.build("second", ["backbone_3d"], SCHEDULE=[{"EPOCH": 1, "TRAIN": ["backbone_3d.conv1"]}])
    with pytest.raises(FreezeError, match="does not use train_model"):
        model(batch_of())


def test_a_fork_without_checkpoint_state_gets_a_warning(standin: Standin) -> None:
    def lose() -> None:
        utils = standin.module("train_utils.train_utils")
        standin.monkeypatch.setattr(builtins, "checkpoint_state", utils.checkpoint_state, raising=False)
        del utils.checkpoint_state  # the loop of the fork finds it elsewhere

    standin.prepare = lose
    run = standin.train("second", "--epochs", "1", *frozen_words(LIST, *RANDOM))
    assert "this OpenPCDet has no checkpoint_state: checkpoints hold no list" in run.err


def test_r3_a_phase_of_the_schedule_makes_another_plan(standin: Standin) -> None:
    phase = {"EPOCH": 1, "TRAIN": ["backbone_2d.blocks.1"]}
    openpcdet.install()
    model = pillar_detector(standin, ["vfe", "backbone_2d"], {"FUSE": True, "SCHEDULE": [phase]})
    session = session_of(model)
    assert session is not None
    session.has_begun = True
    run(model)
    before = session.prefix.replanner.plan
    session.before_epoch(1)
    run(model).loss.backward()  # the head still holds a graph of the first forward
    after = session.prefix.replanner.plan
    assert len(before.folds) == 6 and len(after.folds) == 4
    assert model.backbone_2d.blocks[1][1].weight.grad is not None
    assert after.prefix == ("vfe", "backbone_2d.blocks.0", "backbone_2d.deblocks.0")
