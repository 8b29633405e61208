"""F1: the frozen prefix is found by what its calls depend on, and runs under no_grad."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_toys import Detector, conv, frozen_model, gradients, image
from torch import nn
from torch.utils.checkpoint import checkpoint

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import unfreeze
from pcdet_freeze.freezing.prefix import Options, Plan, Replanner

BLOCKS = ["backbone_2d.blocks"]


def plan_of(model: nn.Module, *args: Any, fuse: bool = True) -> Plan:
    fast = Replanner(model, Options(fuse))
    fast.prepare(*(args or (image(),)))
    return fast.plan


def test_f1_the_prefix_is_listed_in_call_order_also_with_trainable_modules_between() -> None:
    assert plan_of(frozen_model(BLOCKS)).prefix == ("backbone_2d.blocks.0", "backbone_2d.blocks.1")


def test_f1_a_frozen_module_after_a_trainable_one_is_not_in_the_prefix_and_passes_gradients_on() -> None:
    model = frozen_model(["backbone_2d.blocks.1", "backbone_2d.deblocks.0"])
    assert plan_of(model).prefix == ()
    plain, fast = gradients(model, None)[1], gradients(model, False)[1]
    assert plain.keys() == fast.keys() and any("blocks.0.0" in name for name in fast)
    assert all(torch.equal(plain[name], fast[name]) for name in plain)


def test_f1_without_folding_loss_and_suffix_gradients_are_equal_to_the_bit() -> None:
    model = frozen_model(BLOCKS)
    (loss, plain, _), (fast_loss, fast, _) = gradients(model, None), gradients(model, False)
    assert loss == fast_loss and plain.keys() == fast.keys()
    assert all(torch.equal(plain[name], fast[name]) for name in plain)


def test_f1_the_prefix_runs_without_a_graph_and_not_in_inference_mode() -> None:
    model = frozen_model(BLOCKS)
    seen = []
    model.backbone_2d.blocks[0][0].register_forward_hook(
        lambda m, a, out: seen.append((torch.is_grad_enabled(), out.is_inference()))
    )
    model.backbone_2d.deblocks[0].register_forward_hook(lambda m, a, out: seen.append(out.requires_grad))
    fast = Replanner(model)
    fast.prepare(image())
    seen.clear()
    with fast.fast:
        model(image())
    assert seen == [(False, False), True]


class Detached(nn.Module):
    """A frozen layer on a live layer's output, whose graph is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.live, self.still, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.still(self.live(x).detach())).sum()


class LiveStatistics(Detached):
    """Before the frozen layer is nothing with a gradient, but the statistics of a live norm layer."""

    def __init__(self) -> None:
        super().__init__()
        self.live = nn.BatchNorm1d(4, affine=False)


class LiveDropout(Detached):
    def __init__(self) -> None:
        super().__init__()
        self.live = nn.Dropout(0.5)


class InPlace(Detached):
    """The live value is written into memory that a tensor without a gradient owns."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        buffer = torch.zeros_like(x)
        buffer[:2] = self.live(x).detach()[:2]
        return self.head(self.still(buffer)).sum()


@pytest.mark.parametrize("kind", [Detached, LiveStatistics, LiveDropout, InPlace])
def test_f1_what_depends_on_anything_live_is_not_in_the_prefix_though_it_needs_no_gradient(kind: Any) -> None:
    assert plan_of(frozen_model(["still"], kind()), torch.randn(4, 4)).prefix == ()


class Chained(nn.Module):
    """The same frozen layer on data and on what a live layer made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.still, self.live = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.still(self.live(self.still(x))).sum()


def test_f1_each_call_of_a_module_is_judged_separately() -> None:
    model = frozen_model(["still"], Chained())
    x = torch.randn(4, 4)
    assert plan_of(model, x).prefix == ("still",)
    plain, fast = gradients(model, None, x)[1], gradients(model, True, x)[1]
    assert plain.keys() == fast.keys() == {"live.weight", "live.bias"}
    assert all(torch.equal(plain[name], fast[name]) for name in plain)


class Checkpointed(Detector):
    reentrant = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.backbone_2d.blocks[0](x)
        features = checkpoint(self.backbone_2d.deblocks[0], features, use_reentrant=self.reentrant)
        return self.head["cls"](torch.cat([features, features], dim=1)).sum()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_f1_a_trainable_reentrant_checkpoint_after_the_prefix_is_an_error_that_names_the_argument() -> None:
    with pytest.raises(FreezeError, match=r"backbone_2d.deblocks.0.0, .*use_reentrant=False"):
        plan_of(frozen_model(BLOCKS, Checkpointed()))


def test_f1_other_checkpoints_and_reentrant_ones_after_a_trainable_module_are_accepted() -> None:
    model = Checkpointed()
    model.reentrant = False
    assert plan_of(frozen_model(BLOCKS, model)).prefix == ("backbone_2d.blocks.0",)
    assert plan_of(frozen_model(["backbone_2d.deblocks.1"], Checkpointed())).prefix == ()


def test_the_model_is_unchanged_between_forwards_and_after_an_error() -> None:
    model = frozen_model(BLOCKS)
    before = {name: dict(module.__dict__) for name, module in model.named_modules()}
    fast = Replanner(model)
    fast.prepare(image())
    with pytest.raises(RuntimeError), fast.fast:
        model(image()[:, :2])
    assert before == {name: dict(module.__dict__) for name, module in model.named_modules()}


def test_making_the_plan_does_not_change_running_statistics() -> None:
    model = frozen_model(BLOCKS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    Replanner(model).prepare(image())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_plan_is_made_once_and_again_when_the_freeze_changes() -> None:
    model = frozen_model(BLOCKS)
    fast = Replanner(model)
    assert fast.prepare(image()) and not fast.prepare(image())
    unfreeze(model, ["backbone_2d.blocks.1"])
    assert fast.prepare(image())
    assert fast.plan.prefix == ("backbone_2d.blocks.0",)


def test_a_model_that_cannot_be_copied_runs_as_written() -> None:
    model = frozen_model(BLOCKS)
    model.lock = threading.Lock()
    assert plan_of(model).prefix == () and "could not be traced" in plan_of(model).plain[0]


def test_f1_no_frozen_parameter_has_a_gradient() -> None:
    _, found, _ = gradients(frozen_model(BLOCKS), True)
    assert not any(name.startswith("backbone_2d.blocks") for name in found)


def test_a_trainable_deconvolution_is_not_in_the_prefix() -> None:
    model = Detector()
    model.backbone_2d.deblocks[0] = conv(8, 4, nn.ConvTranspose2d, padding=1)
    assert plan_of(frozen_model(BLOCKS, model)).prefix == ("backbone_2d.blocks.0", "backbone_2d.blocks.1")


def test_f1_planning_waits_for_no_other_rank_in_a_trainable_sync_batchnorm(tmp_path: Path) -> None:
    """In train mode it calls a collective, and on a CPU it is an error with a process group."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/a", rank=0, world_size=1)
    try:
        model = frozen_model(BLOCKS, nn.SyncBatchNorm.convert_sync_batchnorm(Detector()))
        assert plan_of(model).prefix == ("backbone_2d.blocks.0", "backbone_2d.blocks.1")
        assert model.backbone_2d.deblocks[0][1].training
    finally:
        torch.distributed.destroy_process_group()
