"""H5: ``torch.compile``, around the model or in place, before the freeze or after it, undoes nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from freeze_toys import Detector, points
from torch import nn

from pcdet_freeze import FreezeHandle, freeze


def around(model: nn.Module, fullgraph: bool) -> nn.Module:
    """The model in a wrapper."""
    return torch.compile(model, backend="eager", fullgraph=fullgraph)


def in_place(model: nn.Module, fullgraph: bool) -> nn.Module:
    """The model itself, compiled."""
    model.compile(backend="eager", fullgraph=fullgraph)
    return model


def frozen_and_compiled(
    compiler: Callable[[nn.Module, bool], nn.Module], order: str, fullgraph: bool
) -> tuple[Detector, nn.Module, FreezeHandle]:
    """(model, what is called, handle of its vfe), in train mode, after a first forward."""
    torch._dynamo.reset()
    model = Detector()
    handle = freeze(model, ["vfe"]) if order == "frozen first" else None
    compiled = compiler(model, fullgraph)
    handle = handle or freeze(compiled, ["vfe"])
    compiled.train()(points())
    return model, compiled, handle


@pytest.mark.parametrize("fullgraph", [False, True])
def test_h5_torch_compile_agrees_and_train_does_not_undo_it(fullgraph: bool) -> None:
    torch._dynamo.reset()
    model = Detector()
    compiled = torch.compile(model, backend="eager", fullgraph=fullgraph)
    compiled(points())
    handle = freeze(compiled, ["vfe", "backbone_2d"])
    for _ in range(2):
        compiled.train()
        model.vfe[1].training = True
        assert torch.equal(compiled(points()), model(points()))
        handle.verify()
    handle.release()
    compiled.train()(points())
    assert model.vfe[1].training and not compiled._forward_pre_hooks


WAYS = [
    (around, "frozen first", True),
    (around, "compiled first", False),
    (in_place, "frozen first", False),
    (in_place, "compiled first", True),
]


@pytest.mark.parametrize(("compiler", "order", "fullgraph"), WAYS)
def test_h5_the_freeze_of_a_compiled_model_is_reapplied_before_each_forward(
    compiler, order: str, fullgraph: bool
) -> None:
    model, compiled, handle = frozen_and_compiled(compiler, order, fullgraph)
    model.vfe[1] = nn.BatchNorm1d(8)
    model.requires_grad_(True)
    compiled.train()(points()).sum().backward()
    assert model.vfe[1].num_batches_tracked == 0 and model.dense_head.weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in handle.parameters())


def test_h5_a_compiled_function_that_calls_the_model_undoes_nothing() -> None:
    torch._dynamo.reset()
    model = Detector()
    handle = freeze(model, ["vfe"])
    forward = torch.compile(lambda x: model(x), backend="eager")
    model.train()
    forward(points()).sum().backward()
    model.vfe[1] = nn.BatchNorm1d(8)
    model.requires_grad_(True)
    forward(points()).sum().backward()
    assert model.vfe[1].num_batches_tracked == 0 and all(p.grad is None for p in handle.parameters())
