"""H3: a frozen module that is not deterministic stops a training in its first step."""

from __future__ import annotations

import io
import logging
from copy import deepcopy
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from proof_toys import (
    BatchStatistics,
    Draws,
    Remembers,
    TracksStatistics,
    WithPart,
    frozen,
    refusal,
)
from torch import nn

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.freeze import MultiTaskFreezeHook
from pcdet_freeze.engine.hooks.freeze_checks import FreezeChecksHook, OutputDriftHook


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (Draws, "draws random numbers"),
        (BatchStatistics, "depends on self.training"),
        (TracksStatistics, "changes vfe.0.1.mean, vfe.0.1.var in its training forward"),
    ],
)
def test_h3_a_module_that_depends_on_the_training_flag_is_named_with_the_fix(kind: Any, why: str) -> None:
    message = refusal(frozen(WithPart(kind), "vfe"))
    assert f"vfe.0.1 ({kind.__name__})" in message and why in message
    assert "FREEZE.EVAL: [vfe.0.1]" in message and "No optimizer step was made" in message


@pytest.mark.parametrize("kind", [Draws, BatchStatistics, TracksStatistics])
def test_h3_the_fix_works(kind: Any) -> None:
    trainer = frozen(WithPart(kind), "vfe", options={"EVAL": ["vfe.0.1"]}, epochs=1)
    before = tensors_of(trainer.model.vfe)
    trainer.run()
    assert_same_state(tensors_of(trainer.model.vfe), before)


def test_h3_the_parent_is_named_if_its_own_forward_draws() -> None:
    class Parent(nn.Module):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(inputs, inputs), nn.Linear(inputs, outputs)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.two(nn.functional.dropout(self.one(x), 0.5, self.training))

    assert "vfe.0.1 (Parent) is not deterministic" in refusal(frozen(WithPart(Parent), "vfe"))


def test_h3_applies_with_parameters_false_too() -> None:
    message = refusal(frozen(WithPart(TracksStatistics), "vfe", options={"PARAMETERS": False}))
    assert "FREEZE.EVAL: [vfe.0.1]" in message


class DrawsInEvalToo(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(nn.functional.dropout(x, 0.5))


def test_h3_a_module_that_draws_in_eval_mode_too_is_a_warning(caplog: Any) -> None:
    frozen(WithPart(DrawsInEvalToo), "vfe", epochs=1, logger=logging.getLogger("h3")).run()
    assert "vfe.0.1 (DrawsInEvalToo)" in caplog.text and "in eval mode too" in caplog.text


def test_h3_that_warning_does_not_hide_an_error_of_another_module() -> None:
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


def test_h3_a_module_that_counts_its_calls_is_named_with_the_fix() -> None:
    message = refusal(frozen(WithPart(WarmsUp), "vfe"))
    assert "vfe.0.1 (WarmsUp)" in message and "FREEZE.EVAL: [vfe.0.1]" in message
    frozen(WithPart(WarmsUp), "vfe", options={"EVAL": ["vfe.0.1"]}, epochs=1).run()


def test_h3_a_module_that_counts_in_eval_mode_too_is_a_warning(caplog: Any) -> None:
    frozen(WithPart(AlwaysWarmsUp), "vfe", epochs=1, logger=logging.getLogger("h3")).run()
    assert (
        "vfe.0.1 (AlwaysWarmsUp) is not deterministic: its forward() depends on earlier calls" in caplog.text
    )


def test_h3_a_head_that_gives_a_loss_may_sample_for_it() -> None:
    class Samples(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[torch.randperm(len(x))] if self.training else x)

        def get_loss(self) -> None:
            """Makes it a head."""

    model = ToyModel()
    model.head = Samples(8, 1)
    frozen(model, "vfe", "head", options={"PARAMETERS": False}, epochs=1).run()


def test_h3_an_ignored_buffer_changes_once_a_step() -> None:
    class Counts(nn.Linear):
        def __init__(self, inputs: int, outputs: int) -> None:
            super().__init__(inputs, outputs)
            self.register_buffer("ran", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.ran += 1
            return super().forward(x)

    trainer = frozen(WithPart(Counts), "vfe", options={"IGNORE": ["vfe.0.1.ran"]}, max_iters=3)
    trainer.hooks = [hook for hook in trainer.hooks if not isinstance(hook, OutputDriftHook)]
    trainer.run()
    assert trainer.model.vfe[0][1].ran == 3


def test_h3_a_trainable_module_may_draw() -> None:
    frozen(WithPart(Draws), "vfe.1", epochs=1).run()


def test_h3_reruns_change_nothing() -> None:
    """A run is bit-identical with and without the checks; attributes that a module stores for a loss stay."""

    class ReadsAttributes(Hook):
        def after_step(self, trainer: Any) -> None:
            part = trainer.model.vfe[0][1]
            self.seen = getattr(self, "seen", (part.ran, part.kept["x"].shape))

    runs = []
    for checked in (True, False):
        torch.manual_seed(3)
        reader = ReadsAttributes()
        trainer = frozen(WithPart(Remembers), "vfe", hooks=[reader])
        if not checked:
            trainer.hooks = [hook for hook in trainer.hooks if not isinstance(hook, FreezeChecksHook)]
        trainer.run()
        runs.append((tensors_of(trainer.model), torch.get_rng_state(), reader.seen))
        assert not any(m._forward_hooks for m in trainer.model.modules())
    assert_same_state(runs[0], runs[1])
    assert runs[0][2] == (1, torch.Size([2, 4]))


def test_h5_the_whole_model_can_be_saved_and_copied_between_steps() -> None:
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
