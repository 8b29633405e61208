"""H3, P2 and P5 on the CPU and, if available, on a GPU, with and without autocast."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from proof_toys import Draws, detector_trainer, toy, toy_batch
from torch import nn

from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import FreezeError

KEPT = ["vfe", "backbone_2d.blocks", "backbone_2d.deblocks", "dense_head"]
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
PLACES = [
    ("cpu", False),
    ("cpu", True),
    pytest.param("cuda", False, marks=[CUDA, pytest.mark.cuda]),
    pytest.param("cuda", True, marks=[CUDA, pytest.mark.cuda]),
]


def move(batch: dict[str, Any], device: torch.device) -> None:
    batch.update({key: value.to(device) for key, value in batch.items() if torch.is_tensor(value)})


def trainer_on(device: str, use_amp: bool, model: nn.Module) -> Trainer:
    batches = [toy_batch("lane_label", seed=seed) for seed in range(3)]
    place = torch.device(device)
    return detector_trainer(model.to(place), batches, KEPT, device=place, move=move, use_amp=use_amp)


class Scatters(nn.Linear):
    """Adds with atomics on a GPU: the order of the terms, and so the last bits, may differ between runs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        places = torch.zeros(len(y), dtype=torch.long, device=y.device)
        return y + torch.zeros_like(y).index_add_(0, places, y)


@pytest.mark.parametrize(("device", "use_amp"), PLACES)
def test_p2_h3_p5_a_frozen_task_passes_and_its_outputs_are_identical(device: str, use_amp: bool) -> None:
    trainer = trainer_on(device, use_amp, toy("DENSE_HEAD", "LANE_HEAD"))
    trainer.run()
    found = {name: verdict["verdict"] for name, verdict in trainer.results["output_drift"].items()}
    assert found == {"vfe": "identical", "dense_head": "identical"}


@pytest.mark.parametrize(("device", "use_amp"), PLACES)
def test_h3_a_module_that_draws_random_numbers_is_an_error(device: str, use_amp: bool) -> None:
    model = toy("DENSE_HEAD", "LANE_HEAD")
    model.vfe.net[0] = Draws(*model.vfe.net[0].weight.shape)
    with pytest.raises(FreezeError, match=r"vfe\.net\.0 \(Draws\) is not deterministic"):
        trainer_on(device, use_amp, model).run()


@pytest.mark.parametrize(("device", "use_amp"), PLACES)
def test_h3_kernel_noise_is_no_error(device: str, use_amp: bool) -> None:
    model = toy("DENSE_HEAD", "LANE_HEAD")
    model.vfe.net[0] = Scatters(*model.vfe.net[0].weight.shape)
    trainer = trainer_on(device, use_amp, model)
    trainer.run()
    assert trainer.results["output_drift"]["vfe"]["verdict"] in ("identical", "noise")
