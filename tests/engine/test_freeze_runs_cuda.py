"""Whole runs under a list, on a GPU: certificate, behaviour, schedule and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from freeze_runs import SaveEach, cfg_of, frozen_trainer, phase, resumed

from pcdet_freeze.engine.trainer import Trainer

DEVICE = torch.device("cuda")
SCHEDULED = cfg_of("vfe", SCHEDULE=[phase(1, "vfe.0", LR_SCALE=0.1)])
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def move(batch: dict[str, Any], device: torch.device) -> None:
    batch.update({name: value.to(device) for name, value in batch.items()})


def on_gpu(**more: Any) -> dict[str, Any]:
    """What a toy trainer needs to run there."""
    torch.manual_seed(7)
    return {"model": ToyModel().to(DEVICE), "device": DEVICE, "move": move, **more}


@pytest.mark.parametrize("use_amp", [False, True])
def test_p1_p2_on_cuda_a_run_leaves_state_and_outputs_as_they_were(use_amp: bool) -> None:
    trainer = frozen_trainer(**on_gpu(use_amp=use_amp))
    frozen, head = tensors_of(trainer.model.vfe), trainer.model.head.weight.detach().clone()
    trainer.run()  # the hooks verify the certificate, and raise where it broke
    assert_same_state(tensors_of(trainer.model.vfe), frozen)
    assert not torch.equal(trainer.model.head.weight, head)


@pytest.mark.parametrize("use_amp", [False, True])
@pytest.mark.parametrize("where", ["it1", "epoch1", "it5"])
@pytest.mark.parametrize("cfg", [cfg_of("vfe"), SCHEDULED], ids=["one list", "schedule"])
def test_r1_r3_on_cuda_a_resumed_run_ends_as_one_without_a_break(
    tmp_path: Path, cfg: Any, where: str, use_amp: bool
) -> None:
    whole: Trainer = frozen_trainer([SaveEach(tmp_path)], cfg, **on_gpu(use_amp=use_amp))
    whole.run()
    broken = resumed(tmp_path / f"{where}.pth", cfg, **on_gpu(use_amp=use_amp))
    broken.run()
    assert_same_state(tensors_of(broken.model), tensors_of(whole.model))
    assert_same_state(broken.optimizer.state_dict(), whole.optimizer.state_dict())
