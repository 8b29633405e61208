"""F5 with hooks, replaced forwards, checkpoints, no_grad and autocast on the same modules."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fast_toys import Detector, frozen_model, gradients, image
from torch import nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from pcdet_freeze.freezing.prefix import Replanner, plan_for
from pcdet_freeze.utils.tensors import relative_error

BLOCKS = ["backbone_2d.blocks"]


def prepared(model: nn.Module) -> Replanner:
    fast = Replanner(model)
    fast.prepare(image())
    return fast


class ActsOnHead(Detector):
    """Runs the first convolution of the head, or both, in a checkpoint, no_grad or autocast."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features, one = self.backbone_2d(x), self.head["cls"]
        if self.how == "both checkpointed":
            return checkpoint(self.losses, features, use_reentrant=False)
        if self.how == "checkpointed":
            first = checkpoint(one, features, use_reentrant=False)
        else:
            around = {"no_grad": torch.no_grad(), "autocast": torch.autocast("cpu", dtype=torch.bfloat16)}
            with around[self.how]:
                first = one(features).float()
        return first.square().sum() + self.head["box"](features).square().mean()

    def losses(self, features: torch.Tensor) -> torch.Tensor:
        return self.head["cls"](features).square().sum() + self.head["box"](features).square().mean()


@pytest.mark.parametrize("how", ["checkpointed", "both checkpointed", "no_grad", "autocast"])
def test_f5_convolutions_are_fused_only_where_they_run_in_the_same_context(how: str) -> None:
    model = frozen_model(BLOCKS, ActsOnHead(how))
    (_, plain, _), (_, found, fast) = gradients(model, None), gradients(model, True)
    assert plain.keys() == found.keys() and fast.plan.siblings == ()
    assert max(relative_error(plain[name], found[name]) for name in plain) < 1e-4


def test_f5_a_norm_over_a_flattened_map_is_not_folded() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 2, 3), nn.BatchNorm1d(2 * 16)
            self.head = nn.Linear(2 * 16, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.conv(x).flatten(1))).square().sum()

    plan = prepared(frozen_model(["conv", "norm"], Flat())).plan
    assert plan.prefix == ("conv", "norm") and plan.folds == ()
    assert any("norm: its number of channels is not that of conv" in line for line in plan.lines())


def test_f5_a_hook_added_later_sees_the_output_of_the_unfolded_layer() -> None:
    model, seen = frozen_model(BLOCKS), []
    fast, layer = prepared(model), model.backbone_2d.blocks[0][0]
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(output.clone()))
    with fast.fast:
        model(image())
    assert torch.equal(seen[0], type(layer).forward(layer, image()))
    handle.remove()
    with fast.fast:
        assert "forward" in layer.__dict__  # folded again


def test_f5_a_layer_that_is_parametrized_later_runs_as_written() -> None:
    model = frozen_model(BLOCKS)
    fast = prepared(model)
    parametrizations.weight_norm(model.backbone_2d.blocks[0][0])
    plain = copy.deepcopy(model)(image())
    with fast.fast:
        assert relative_error(plain, model(image())) < 1e-6
    fast.prepare(image())
    with fast.fast:
        assert relative_error(plain, model(image())) < 1e-6


def test_f5_another_eps_renews_the_folding() -> None:
    model = frozen_model(BLOCKS)
    fast = prepared(model)
    with fast.fast:
        model(image())
    model.backbone_2d.blocks[0][1].eps = 0.5
    plain = model(image())
    with fast.fast:
        assert relative_error(plain, model(image())) < 1e-6


def test_h6_a_forward_set_on_a_frozen_instance_is_kept() -> None:
    model = frozen_model(BLOCKS)
    block = model.backbone_2d.blocks[0]

    def doubled(x: torch.Tensor) -> Any:
        return 2 * type(block).forward(block, x)

    block.forward = doubled
    fast, plain = prepared(model), model(image())
    for _ in range(2):
        with fast.fast:
            assert relative_error(plain, model(image())) < 1e-6
        assert block.forward is doubled


def test_f5_a_pillar_encoder_with_a_hook_inside_runs_as_written() -> None:
    class Pillars(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(3, 3)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers[0](x)

        def forward_frozen(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.layers[0].weight, self.layers[0].bias)

    model, seen = frozen_model(["0"], nn.Sequential(Pillars(), nn.Linear(3, 1))), []
    fast = Replanner(model)
    fast.prepare(torch.ones(2, 3))
    model[0].layers[0].register_forward_hook(lambda module, args, output: seen.append(output))
    with fast.fast:
        model(torch.ones(2, 3))
    assert fast.plan.quick == ("0",) and len(seen) == 1
    assert plan_for(model, (torch.ones(2, 3),)).quick == ()
