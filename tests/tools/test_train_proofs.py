"""What stops tools/train.py before its first step: weights that no file supplied, a forgetful optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tool_runs import LIST, folder, log_of, train
from torch import nn

from pcdet_freeze.engine.optim.optimizer import OPTIMIZERS


def test_p4_what_no_checkpoint_supplied_stops_a_training_before_it_starts(tmp_path: Path) -> None:
    assert train(tmp_path, sets=[LIST, "[vfe, backbone_2d.blocks]"]) == 1
    log = log_of(tmp_path)
    assert "  vfe (" in log and "  backbone_2d.blocks (" in log and "--pretrained_model" in log
    assert "Start training" not in log and not list(folder(tmp_path).rglob("*.pth"))


def test_p4_what_a_checkpoint_supplied_is_let_through_and_a_resume_supplies_all(tmp_path: Path) -> None:
    assert train(tmp_path, "--max_iters", 1) == 0
    ckpt = folder(tmp_path) / "ckpt" / "checkpoint_epoch_1.pth"
    stage = ["--extra_tag", "stage2", "--ckpt_save_interval", 1]
    frozen = [LIST, "[vfe, backbone_2d.blocks]"]
    assert train(tmp_path, *stage, "--pretrained_model", ckpt, "--epochs", 1, sets=frozen) == 0
    assert train(tmp_path, *stage, "--epochs", 2, sets=frozen) == 0


@OPTIMIZERS.register_as("forgetful_sgd")
def _forgetful_sgd(model: nn.Module, cfg: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.vfe.parameters(), lr=0.1)


def test_p5_an_optimizer_that_forgets_parameters_is_an_error_without_a_freeze_list_too(
    tmp_path: Path,
) -> None:
    assert train(tmp_path, sets=["OPTIMIZATION.OPTIMIZER", "forgetful_sgd"]) == 1
    assert "trainable, but in no group" in log_of(tmp_path)
