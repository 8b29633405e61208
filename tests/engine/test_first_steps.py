"""What stops a training under a freeze list in its first steps: H3, H11, P5."""

from __future__ import annotations

import io
import logging
from copy import deepcopy
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of, toy_trainer
from proof_toys import (
    BatchStatistics,
    Draws,
    Remembers,
    TracksStatistics,
    TwoBranches,
    WithPart,
    detector_trainer,
    frozen,
    toy,
    toy_batch,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from pcdet_freeze.engine.audit import STEPS, OptimizerGroupsHook, check_groups
from pcdet_freeze.engine.behaviour_hook import BehaviourHook
from pcdet_freeze.engine.first_steps_hook import FirstStepsHook
from pcdet_freeze.engine.freeze_hook import MultiTaskFreezeHook
from pcdet_freeze.engine.hooks import Hook
from pcdet_freeze.engine.max_iters_hook import MaxItersHook
from pcdet_freeze.errors import FreezeError


def refusal(trainer: Any) -> str:
    """Why the run stopped; nothing may have moved by then."""
    before = tensors_of(trainer.model.head)
    with pytest.raises(FreezeError) as stopped:
        trainer.run()
    assert trainer.iteration == 0
    assert_same_state(tensors_of(trainer.model.head), before)
    return str(stopped.value)


# ------------------------------------------------------------------------------------------------- H3


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Draws, "draws random numbers"),
        (BatchStatistics, "asks self.training"),
        (TracksStatistics, "changes vfe.0.1.mean, vfe.0.1.var in its training forward"),
    ],
)
def test_h3_code_that_asks_for_the_training_flag_is_named_with_its_cure(kind: Any, why: str) -> None:
    message = refusal(frozen(WithPart(kind), "vfe"))
    assert f"vfe.0.1 ({kind.__name__})" in message and why in message
    assert "FREEZE.EVAL: [vfe.0.1]" in message and "No optimizer step was made" in message


@pytest.mark.parametrize("kind", [Draws, BatchStatistics, TracksStatistics])
def test_h3_the_cure_works(kind: Any) -> None:
    trainer = frozen(WithPart(kind), "vfe", options={"EVAL": ["vfe.0.1"]}, epochs=1)
    before = tensors_of(trainer.model.vfe)
    trainer.run()
    assert_same_state(tensors_of(trainer.model.vfe), before)


def test_h3_the_parent_is_named_where_its_own_code_draws() -> None:
    class Parent(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(inputs, inputs), nn.Linear(inputs, outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(nn.functional.dropout(self.one(x), 0.5, self.training))

    assert "vfe.0.1 (Parent) gives another output each time" in refusal(frozen(WithPart(Parent), "vfe"))


def test_h3_holds_with_parameters_false_too() -> None:
    message = refusal(frozen(WithPart(TracksStatistics), "vfe", options={"PARAMETERS": False}))
    assert "FREEZE.EVAL: [vfe.0.1]" in message


class DrawsInEvalToo(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.5))


def test_h3_what_draws_in_eval_too_has_no_cure_and_is_a_warning(caplog: Any) -> None:
    frozen(WithPart(DrawsInEvalToo), "vfe", epochs=1, logger=logging.getLogger("h3")).run()
    assert (
        "vfe.0.1 (DrawsInEvalToo) gives another output" in caplog.text and "in eval mode too" in caplog.text
    )


def test_h3_it_does_not_hide_another_module_that_can_be_cured() -> None:
    class Both(nn.Sequential):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(Draws(inputs, inputs), DrawsInEvalToo(inputs, outputs))

    assert "FREEZE.EVAL: [vfe.0.1.0]" in refusal(frozen(WithPart(Both), "vfe"))


class WarmsUp(nn.Linear):
    """Counts its calls in a plain attribute, as annealing does; in eval mode only if ``always``."""

    always = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = getattr(self, "calls", 0) + (1 if self.training or self.always else 0)
        return super().forward(x) * (1 + self.calls)


class AlwaysWarmsUp(WarmsUp):
    always = True


def test_h3_code_that_counts_its_calls_is_named_with_its_cure() -> None:
    message = refusal(frozen(WithPart(WarmsUp), "vfe"))
    assert "vfe.0.1 (WarmsUp) gives another output" in message and "FREEZE.EVAL: [vfe.0.1]" in message
    frozen(WithPart(WarmsUp), "vfe", options={"EVAL": ["vfe.0.1"]}, epochs=1).run()


def test_h3_code_that_counts_in_eval_too_is_a_warning(caplog: Any) -> None:
    frozen(WithPart(AlwaysWarmsUp), "vfe", epochs=1, logger=logging.getLogger("h3")).run()
    assert "vfe.0.1 (AlwaysWarmsUp) gives another output when it runs again" in caplog.text


def test_h3_a_head_that_still_gives_its_loss_may_sample_for_it() -> None:
    class Samples(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[torch.randperm(len(x))] if self.training else x)

        def get_loss(self) -> None:
            """What makes it a head."""

    model = ToyModel()
    model.head = Samples(8, 1)
    frozen(model, "vfe", "head", options={"PARAMETERS": False}, epochs=1).run()


def test_h3_a_buffer_that_may_change_changes_once_a_step() -> None:
    class Counts(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.register_buffer("ran", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.ran += 1
            return super().forward(x)

    trainer = frozen(WithPart(Counts), "vfe", options={"IGNORE": ["vfe.0.1.ran"]}, hooks=[MaxItersHook(3)])
    trainer.hooks = [hook for hook in trainer.hooks if not isinstance(hook, BehaviourHook)]
    trainer.run()
    assert trainer.model.vfe[0][1].ran == 3


def test_h3_a_module_that_is_not_frozen_may_draw() -> None:
    frozen(WithPart(Draws), "vfe.1", epochs=1).run()


def test_h3_replays_leave_no_trace() -> None:
    """The same run, to the bit, as with the replays taken out; what a module keeps for a loss is kept."""

    class Looks(Hook):
        def after_step(self, trainer: Any) -> None:
            part = trainer.model.vfe[0][1]
            self.seen = getattr(self, "seen", (part.ran, part.kept["x"].shape))

    runs = []
    for replayed in (True, False):
        torch.manual_seed(3)
        looks = Looks()
        trainer = frozen(WithPart(Remembers), "vfe", hooks=[looks])
        if not replayed:
            trainer.hooks = [hook for hook in trainer.hooks if not isinstance(hook, FirstStepsHook)]
        trainer.run()
        runs.append((tensors_of(trainer.model), torch.get_rng_state(), looks.seen))
        assert not any(m._forward_hooks for m in trainer.model.modules())
    assert_same_state(runs[0], runs[1])
    assert runs[0][2] == (1, torch.Size([2, 4]))


def test_h5_between_steps_the_whole_model_can_be_saved_and_copied() -> None:
    class Saves(Hook):
        def after_step(self, trainer: Any) -> None:
            file = io.BytesIO()
            torch.save(trainer.model, file)
            for copied in (
                torch.load(io.BytesIO(file.getvalue()), weights_only=False),
                deepcopy(trainer.model),
            ):
                copied.train()(dict(trainer.batch))
                owner.handle.verify(copied)

    trainer = frozen(ToyModel(), "vfe", hooks=[Saves()], epochs=1)
    owner = next(hook for hook in trainer.hooks if isinstance(hook, MultiTaskFreezeHook))
    trainer.run()


# ------------------------------------------------------------------------------------------------ H11


def test_h11_what_no_loss_reaches_is_named_by_the_smallest_module_that_covers_it() -> None:
    message = refusal(frozen(TwoBranches(), "vfe"))
    assert "branch: add 'branch'" in message and "head" not in message


def test_h11_the_named_entry_is_the_cure() -> None:
    trainer = frozen(TwoBranches(), "vfe", "branch", epochs=1)
    trainer.run()
    assert trainer.iteration == 4


def test_h11_without_a_list_nothing_is_checked() -> None:
    trainer = toy_trainer([OptimizerGroupsHook()], model=TwoBranches(), epochs=1)
    trainer.run()
    assert trainer.iteration == 4


def test_h11_a_live_norm_layer_without_weights_is_found_and_one_that_is_used_is_not() -> None:
    class Norms(ToyModel):
        used = False

        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(4, affine=False)

        def forward(self, batch: dict[str, Any]) -> Any:
            normed = self.norm(batch["x"])
            return super().forward({**batch, "x": normed if self.used else batch["x"]})

    assert "norm: add 'norm'" in refusal(frozen(Norms(), "vfe"))
    Norms.used = True
    frozen(Norms(), "vfe", epochs=1).run()


def test_h11_a_gradient_of_zero_is_no_fault() -> None:
    class NoPositives(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            result, tb_dict, disp_dict = super().forward(batch)
            return {"loss": result["loss"] * 0}, tb_dict, disp_dict

    frozen(NoPositives(), "vfe", epochs=1).run()


def test_h11_a_first_batch_without_labels_is_passed_over_and_the_next_one_tells(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    batches = [toy_batch("label"), toy_batch("label", seed=1)]
    batches[0]["label"].zero_()
    trainer = detector_trainer(
        toy("DENSE_HEAD", "ROI_HEAD"), batches, ["backbone_2d.lane*"], logger=logging.getLogger("h11")
    )
    quiet = trainer.model.roi_head.get_loss
    trainer.model.roi_head.get_loss = lambda tb: _constant_without_labels(trainer.model.roi_head, quiet(tb))
    trainer.run()
    assert trainer.iteration == 2 and "no labels for dense_head, roi_head" in caplog.text


def test_h11_a_constant_loss_of_a_labelled_batch_is_an_error() -> None:
    model = toy("DENSE_HEAD", "ROI_HEAD")
    model.roi_head.get_loss = lambda tb: (torch.tensor(0.0), tb)
    trainer = detector_trainer(model, [toy_batch("label")], ["vfe"])
    with pytest.raises(FreezeError, match="roi_head: add 'roi_head'"):
        trainer.run()


def _constant_without_labels(head: Any, found: Any) -> Any:
    return found if head.kept["target"].any() else (torch.tensor(0.0), found[1])


def test_h11_branches_of_a_task_that_is_gone_are_named() -> None:
    trainer = detector_trainer(
        toy("DENSE_HEAD", "LANE_HEAD"), [toy_batch("lane_label")], ["vfe", "dense_head"]
    )
    with pytest.raises(FreezeError, match=r"backbone_2d\.deblocks: add 'backbone_2d\.deblocks'"):
        trainer.run()


def test_h11_a_phase_that_frees_what_no_loss_reaches_is_stopped_before_its_first_step() -> None:
    freed = {"SCHEDULE": [{"EPOCH": 1, "TRAIN": ["branch"]}]}
    trainer = frozen(TwoBranches(), "vfe", "branch", options=freed)
    with pytest.raises(FreezeError, match="branch: add 'branch'"):
        trainer.run()
    assert trainer.iteration == 4


@pytest.mark.parametrize("used", [True, False])
def test_h11_behind_reentrant_checkpointing_the_backward_tells(used: bool) -> None:
    class Checkpointed(TwoBranches):
        def forward(self, batch: dict[str, Any]) -> Any:
            x = batch["x"].clone().requires_grad_()
            value = checkpoint(self.branch, x, use_reentrant=True)
            batch["factor"] = 1 + value.square().mean() * used
            if not used:
                batch["factor"] = 1 + checkpoint(torch.sin, x, use_reentrant=True).mean()
            return ToyModel.forward(self, batch)

    trainer = frozen(Checkpointed(), "vfe", epochs=1)
    if used:
        trainer.run()
    else:
        assert "branch: add 'branch'" in refusal(trainer)


# ------------------------------------------------------------------------------------------------- P5


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda groups: groups[0]["params"].pop(), "head.bias train but are in no group"),
        (
            lambda groups: groups[1]["params"].append(groups[0]["params"][0]),
            "head.weight are in a group twice",
        ),
    ],
)
@pytest.mark.parametrize("entries", [(), ("vfe",)])
def test_p5_a_parameter_must_be_in_exactly_one_group(spoil: Any, message: str, entries: Any) -> None:
    model = ToyModel()
    model.vfe.requires_grad_(False)
    trainer = frozen(model, *entries, hooks=[OptimizerGroupsHook()])
    spoil(trainer.optimizer.param_groups)
    with pytest.raises(FreezeError, match=message):
        trainer.run()


def test_p5_what_does_not_train_must_be_in_no_group() -> None:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.bias.requires_grad_(False)
    with pytest.raises(FreezeError, match="bias do not train but are in a group"):
        check_groups(model, optimizer)


def many_steps(model: nn.Module, **more: Any) -> Any:
    return frozen(model, "vfe", epochs=6, **more)


class Spare(ToyModel):
    """Has one more weight, whose gradient a hook decides about."""

    def __init__(self, gradient: Any = None) -> None:
        super().__init__()
        self.spare = nn.Linear(1, 1, bias=False)
        self.gradient = gradient

    def forward(self, batch: dict[str, Any]) -> Any:
        batch = {**batch, "factor": 1 + 0 * self.spare.weight.sum()}
        return super().forward(batch)


class TakesGradients(Hook):
    """Sets the gradient of the spare weight to None before each step for which ``when`` is true."""

    def __init__(self, when: Any) -> None:
        self.when = when

    def before_train(self, trainer: Any) -> None:
        def take(*_: Any) -> None:
            if self.when(trainer.iteration):
                trainer.model.spare.weight.grad = None

        trainer.optimizer.register_step_pre_hook(take)


def test_p5_no_gradient_in_twenty_steps_is_an_error() -> None:
    trainer = many_steps(Spare(), hooks=[TakesGradients(lambda step: True)])
    with pytest.raises(FreezeError, match=r"spare\.weight trains, but had no gradient in any of 20 steps"):
        trainer.run()
    assert trainer.iteration == STEPS - 1


def test_p5_a_run_that_is_shorter_is_judged_at_its_end() -> None:
    hooks = [TakesGradients(lambda step: True), MaxItersHook(3)]
    with pytest.raises(FreezeError, match="in any of 3 steps"):
        many_steps(Spare(), hooks=hooks).run()


def test_p5_gradients_that_are_zero_or_sometimes_missing_are_notes(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    logger = logging.getLogger("audited")
    many_steps(Spare(), logger=logger).run()
    assert "the gradient of spare.weight was zero in all of 20 steps" in caplog.text
    many_steps(Spare(), hooks=[TakesGradients(lambda step: step == 2)], logger=logger).run()
    assert "spare.weight had no gradient in 1 of 20 steps" in caplog.text


def test_p5_a_frozen_parameter_with_a_gradient_is_an_error() -> None:
    class GivesGradient(TakesGradients):
        def before_train(self, trainer: Any) -> None:
            weight = trainer.model.vfe[0].weight

            def give(*_: Any) -> None:
                weight.grad = torch.zeros_like(weight)

            trainer.optimizer.register_step_pre_hook(give)

    message = refusal(many_steps(ToyModel(), hooks=[GivesGradient(None)]))
    assert "vfe.0.weight is frozen, but has a gradient" in message


def test_p5_steps_that_amp_skips_do_not_count() -> None:
    """Five steps overflow; the verdict comes after twenty others."""

    class Overflows(Hook):
        def before_train(self, trainer: Any) -> None:
            trainer.clip_norm = None
            trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
            weight = trainer.model.head.weight
            weight.register_hook(lambda grad: grad * (float("inf") if trainer.iteration < 5 else 1))

    trainer = frozen(
        Spare(), "vfe", epochs=7, hooks=[Overflows(), TakesGradients(lambda step: True)], optimizer="sgd"
    )
    with pytest.raises(FreezeError, match="in any of 20 steps"):
        trainer.run()
    assert trainer.iteration == 5 + STEPS - 1


def test_p5_another_optimizer_is_audited_anew() -> None:
    class Thaws(Hook):
        def before_epoch(self, trainer: Any) -> None:
            if trainer.epoch == 1:
                trainer.rebuild(torch.optim.SGD([trainer.model.head.weight], lr=0.1))

    with pytest.raises(FreezeError, match=r"head\.bias train but are in no group"):
        frozen(ToyModel(), "vfe", hooks=[Thaws()]).run()
