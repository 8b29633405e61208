"""F1 and F5 on golden weights: a PointPillar with a frozen trunk, with and without BN folding."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from pointpillar_golden import Golden

from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import Options, Replanner
from pcdet_freeze.utils.tensors import relative_error

LIST = ["vfe", "backbone_2d.blocks"]


@pytest.fixture(scope="module")
def golden(reference: Path) -> Golden:
    return Golden(reference)


@pytest.fixture(scope="module")
def runs(golden: Golden) -> dict[Any, Any]:
    """By FREEZE.FUSE (None: nothing but the freeze): (batch, loss, gradients, plan) of a training forward."""
    model = golden.model()
    freeze(model, LIST)
    return {
        fuse: run(copy.deepcopy(model).train(), golden.fresh_batch(), fuse) for fuse in (None, False, True)
    }


def run(model: Any, batch: dict[str, Any], fuse: bool | None) -> Any:
    fast = Replanner(model, Options(bool(fuse)))
    if fuse is not None:
        fast.prepare(dict(batch))
    with fast.fast:
        loss = model(batch)[0]["loss"]
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return batch, loss.detach(), gradients, fast.plan


def test_f5_the_whole_trunk_is_folded_and_the_head_is_one_convolution(runs: dict[Any, Any]) -> None:
    plan = runs[True][3]
    assert plan.prefix == ("vfe", *(f"backbone_2d.blocks.{level}" for level in range(3)))
    assert len(plan.folds) == 17 and plan.quick == ("vfe",) and plan.plain == ()
    assert plan.siblings == (("dense_head.conv_cls", "dense_head.conv_box", "dense_head.conv_dir_cls"),)


@pytest.mark.parametrize("key", ["pillar_features", "spatial_features", "spatial_features_2d"])
def test_f5_relative_error_of_the_features_is_at_most_2e_6(runs: dict[Any, Any], key: str) -> None:
    assert relative_error(runs[None][0][key], runs[True][0][key]) <= 2e-6
    assert runs[True][3].difference <= 2e-6


def test_f5_relative_error_of_loss_and_gradients_is_at_most_1e_4(runs: dict[Any, Any]) -> None:
    plain, fast = runs[None], runs[True]
    assert plain[2].keys() == fast[2].keys()
    assert float(fast[1]) == pytest.approx(float(plain[1]), rel=1e-6)
    flat = [torch.cat([gradient.flatten() for gradient in one[2].values()]) for one in (plain, fast)]
    assert relative_error(*flat) <= 1e-4


def test_f1_without_folding_everything_is_bitwise_equal(runs: dict[Any, Any]) -> None:
    plain, fast = runs[None], runs[False]
    assert torch.equal(plain[1], fast[1]) and plain[2].keys() == fast[2].keys()
    assert all(torch.equal(plain[2][name], fast[2][name]) for name in plain[2])
