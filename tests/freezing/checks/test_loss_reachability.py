"""H11: a trainable parameter that no loss depends on stops the training before its first step."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, toy_trainer
from proof_toys import (
    TwoBranches,
    detector_trainer,
    frozen,
    refusal,
    toy,
    toy_batch,
)
from torch import nn
from torch.utils.checkpoint import checkpoint

from pcdet_freeze.engine.hooks.freeze_checks import OptimizerGroupsHook
from pcdet_freeze.errors import FreezeError


def test_h11_the_error_names_the_outermost_module_that_no_loss_reaches() -> None:
    message = refusal(frozen(TwoBranches(), "vfe"))
    assert "branch: add 'branch'" in message and "head" not in message


def test_h11_adding_the_named_entry_fixes_it() -> None:
    trainer = frozen(TwoBranches(), "vfe", "branch", epochs=1)
    trainer.run()
    assert trainer.iteration == 4


def test_h11_is_not_checked_without_a_list() -> None:
    trainer = toy_trainer([OptimizerGroupsHook()], model=TwoBranches(), epochs=1)
    trainer.run()
    assert trainer.iteration == 4


def test_h11_an_unused_live_norm_layer_without_weights_is_an_error() -> None:
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


def test_h11_a_zero_gradient_is_no_error() -> None:
    class NoPositives(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            result, tb_dict, disp_dict = super().forward(batch)
            return {"loss": result["loss"] * 0}, tb_dict, disp_dict

    frozen(NoPositives(), "vfe", epochs=1).run()


def test_h11_a_first_batch_without_labels_defers_the_check_to_the_next_batch(caplog: Any) -> None:
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


def test_h11_branches_of_a_frozen_task_are_named() -> None:
    trainer = detector_trainer(
        toy("DENSE_HEAD", "LANE_HEAD"), [toy_batch("lane_label")], ["vfe", "dense_head"]
    )
    with pytest.raises(FreezeError, match=r"backbone_2d\.deblocks: add 'backbone_2d\.deblocks'"):
        trainer.run()


def test_h11_is_checked_again_when_a_phase_of_the_schedule_begins() -> None:
    freed = {"SCHEDULE": [{"EPOCH": 1, "TRAIN": ["branch"]}]}
    trainer = frozen(TwoBranches(), "vfe", "branch", options=freed)
    with pytest.raises(FreezeError, match="branch: add 'branch'"):
        trainer.run()
    assert trainer.iteration == 4


@pytest.mark.parametrize("used", [True, False])
def test_h11_with_reentrant_checkpointing_is_checked_after_the_backward(used: bool) -> None:
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
