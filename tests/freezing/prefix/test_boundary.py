"""F7, the boundary: which outputs of the prefix the rest reads, and which of them cannot be cached."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from fast_toys import conv
from torch import Tensor, nn
from torch.nn import functional as F

from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import Options, plan_for
from pcdet_freeze.freezing.prefix.boundary import Boundary, Slot
from pcdet_freeze.freezing.prefix.boundary_check import MemoryRecorder, find_boundary
from pcdet_freeze.freezing.prefix.cached_forward import CachedForward

Batch = dict[str, Any]


class Encoder(nn.Module):
    """Rows of points, a ragged number a sample."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, batch: Batch) -> Batch:
        batch["rows"] = self.linear(batch["points"][:, 1:])
        batch["stride"] = 8
        return batch


class Scatter(nn.Module):
    """Without state: rows to maps (B, 3, 4, 4)."""

    reads, writes = ("rows", "points"), ("maps",)

    def forward(self, batch: Batch) -> Batch:
        maps = batch["rows"].new_zeros(batch["batch_size"], 3)
        batch["maps"] = maps.index_add(0, batch["points"][:, 0].long(), batch["rows"])[..., None, None]
        batch["maps"] = batch["maps"].expand(-1, -1, 4, 4).contiguous()
        return batch


class Toy(nn.Module):
    """Encoder, scatter, two blocks, of which a live layer reads each; the loss is a sum of squares."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.vfe, self.scatter = Encoder(), Scatter()
        self.blocks = nn.ModuleList([conv(3, 4, padding=1), conv(4, 4, padding=1)])
        self.heads = nn.ModuleList([nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)])

    def forward(self, batch: Batch) -> Any:
        batch = self.scatter(self.vfe(batch))
        x, parts = batch["maps"], []
        for block, head in zip(self.blocks, self.heads, strict=True):
            x = self.between(block(x))
            parts.append(head(x).square().sum())
        return {"loss": torch.stack(parts).sum() + self.more(batch)}, {}, {}

    def between(self, x: Tensor) -> Tensor:
        return x

    def more(self, batch: Batch) -> Any:
        return 0


def batch_of(sizes: tuple[int, ...] = (5, 3)) -> Batch:
    draw = torch.Generator().manual_seed(len(sizes))
    number = torch.cat([torch.full((size, 1), float(b)) for b, size in enumerate(sizes)])
    return {
        "points": torch.cat([number, torch.randn(len(number), 3, generator=draw)], 1),
        "batch_size": len(sizes),
    }


def last_of(batch: Batch) -> Batch:
    points = batch["points"][batch["points"][:, 0] == batch["batch_size"] - 1]
    copies = [torch.cat([torch.full_like(points[:, :1], n), points[:, 1:]], 1) for n in range(3)]
    return {"points": torch.cat(copies), "batch_size": 3}


def frozen(model: nn.Module, *names: str) -> nn.Module:
    freeze(model, names or ("vfe", "blocks"))
    return model.train()


def found(model: nn.Module, batch: Batch | None = None) -> tuple[Boundary, dict[Slot, Tensor]]:
    batch = batch or batch_of()
    return find_boundary(model, plan_for(model, (batch,)), Options(), batch, last_of)


def test_f7_outputs_that_trainable_modules_read_are_cached_and_inner_ones_are_not() -> None:
    boundary, values = found(frozen(Toy()))
    assert boundary.paths == ("vfe", "scatter", "blocks.0", "blocks.1") and boundary.refused == ()
    assert [(slot.name, slot.shape) for slot in boundary.slots] == [
        ("blocks.0", (4, 4, 4)),
        ("blocks.1", (4, 4, 4)),
    ]
    assert [tuple(value.shape) for value in values.values()] == [(2, 4, 4, 4)] * 2


def test_f7_a_stateless_scatter_after_ragged_rows_makes_maps_that_can_be_cached() -> None:
    boundary, _ = found(frozen(Toy(), "vfe"))
    assert [slot.name for slot in boundary.slots] == ["scatter: maps"] and boundary.refused == ()


@pytest.mark.parametrize("sizes", [(5, 3), (4,), (2, 2, 2)])
def test_f7_supplied_values_give_loss_and_gradients_of_the_computed_ones_to_the_bit(sizes: Any) -> None:
    model, batch = frozen(Toy()), batch_of(sizes)
    plan = plan_for(model, (batch,))
    boundary, values = find_boundary(model, plan, Options(), batch, last_of)
    results = []
    for recorder in (MemoryRecorder(), MemoryRecorder(values)):
        twin = copy.deepcopy(model)
        with CachedForward(twin, plan, Options(), boundary, recorder):
            loss = twin(copy.deepcopy(batch))[0]["loss"]
        loss.backward()
        results.append([loss, *(p.grad for p in twin.heads.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_f7_a_supplied_forward_runs_no_module_of_the_prefix_and_leaves_meta_tensors() -> None:
    model, batch, ran = frozen(Toy()), batch_of(), []
    plan = plan_for(model, (batch,))
    boundary, values = find_boundary(model, plan, Options(), batch, last_of)
    for part in (model.vfe.linear, model.blocks[0][0], model.blocks[1][0]):
        part.register_forward_hook(lambda *_: ran.append(1))
    with CachedForward(model, plan, Options(), boundary, MemoryRecorder(values)):
        model(batch)
    assert ran == [] and batch["stride"] == 8
    assert batch["maps"].device.type == "meta" and batch["maps"].shape == (2, 3, 4, 4)


def test_f7_a_forward_that_raises_aborts_its_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, ended = frozen(Toy()), batch_of(), []
    plan = plan_for(model, (batch,))
    boundary, values = find_boundary(model, plan, Options(), batch, last_of)
    for name in ("finish", "abort"):
        monkeypatch.setattr(MemoryRecorder, name, lambda self, name=name: ended.append(name))
    with (
        pytest.raises(KeyboardInterrupt),
        CachedForward(model, plan, Options(), boundary, MemoryRecorder(values)),
    ):
        raise KeyboardInterrupt
    assert ended == ["abort"]


class TwoOutputs(nn.Conv2d):
    """Gives a new dict."""

    def __init__(self) -> None:
        super().__init__(4, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return {"map": super().forward(x), "unused": x, "stride": 2}


class GivesDict(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1] = TwoOutputs()

    def between(self, x: Any) -> Tensor:
        return x["map"] if isinstance(x, dict) else x


def test_f7_a_module_that_returns_a_new_dict_is_replaced_by_one() -> None:
    boundary, _ = found(frozen(GivesDict()))
    assert [slot.name for slot in boundary.slots] == ["blocks.0", "blocks.1: map"] and boundary.refused == ()
    assert set(boundary.outputs["blocks.1", 0].values) == {"map", "unused", "stride"}


class ReadsTwice(GivesDict):
    """What the first block put out is read under both names, before and after the second one hands it on."""

    def between(self, x: Any) -> Tensor:
        if not isinstance(x, dict):
            self.first = x
            return x
        return x["map"] + x["unused"] + self.first


def test_f7_a_tensor_that_two_modules_return_is_supplied_under_both_names() -> None:
    boundary, _ = found(frozen(ReadsTwice()))
    assert {slot.name for slot in boundary.slots} == {"blocks.0", "blocks.1: map", "blocks.1: unused"}
    assert boundary.refused == ()


class ReadsRows(Toy):
    def more(self, batch: Batch) -> Any:
        return batch["rows"].mean()


class MixesSamples(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1] = BatchMean()


class BatchMean(nn.Conv2d):
    def __init__(self) -> None:
        super().__init__(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(dim=0))


class Draws(BatchMean):
    def forward(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self, F.dropout(x, 0.5, self.training))


class DrawsByItself(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1] = Draws()


class WritesOver(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.blocks[1] = nn.Sequential(nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1))
        nn.init.constant_(self.blocks[0][1].bias, -0.5)
        self.blocks[0] = self.blocks[0][:2]


class Remembers(Encoder):
    def forward(self, batch: Batch) -> Batch:
        batch = super().forward(batch)
        self.kept = batch["rows"] * 2
        return batch


class KeepsToItself(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.vfe = Remembers()

    def more(self, batch: Batch) -> Any:
        return self.vfe.kept.mean()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (ReadsRows, r"vfe: rows has shape \(8, 3\), not a row for each of 2 samples"),
        (MixesSamples, "blocks.1 is random, or depends on the other samples"),
        (DrawsByItself, "blocks.1 is random, or depends on the other samples"),
        (WritesOver, "blocks.0 is modified in place by a later module of the prefix"),
        (KeepsToItself, "vfe stores tensors that other modules read"),
    ],
)
def test_f7_tensors_that_cannot_be_cached_are_named_with_the_reason(kind: type[Toy], said: str) -> None:
    boundary, _ = found(frozen(kind()))
    assert len(boundary.refused) == 1
    assert re.search(said, boundary.refused[0])


def test_f7_finding_the_boundary_changes_nothing() -> None:
    model, batch = frozen(Toy()), batch_of()
    state, given = copy.deepcopy(model.state_dict()), copy.deepcopy(batch)
    found(model, batch)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert batch.keys() == given.keys() and torch.equal(batch["points"], given["points"])
    assert not any(m._forward_hooks for m in model.modules()) and all(
        p.grad is None for p in model.parameters()
    )
