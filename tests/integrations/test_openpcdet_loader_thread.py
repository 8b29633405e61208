"""A loader that prefetches in a thread (DataLoaderX) draws from the generators of the process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from standin_runs import Standin, seed
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pcdet_freeze import openpcdet


class Frames(Dataset):  # type: ignore[type-arg]
    """Draws each frame from numpy's generator. The second batch waits for ``turn``, if one comes."""

    def __init__(self) -> None:
        self.turn, self.has_drawn = threading.Event(), threading.Event()
        self.drawn: list[np.ndarray[Any, Any]] = []

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, Any]:
        if index == 2:
            self.turn.wait(0.3)
        frame = {"points": np.random.randn(12, 4), "gt_boxes": np.random.randn(3, 4)}
        self.drawn.append(frame["points"])
        if index == 2:
            self.has_drawn.set()
        return {key: torch.from_numpy(value).float() for key, value in frame.items()}


class DataLoaderX(DataLoader):  # type: ignore[type-arg]
    """Loads one batch ahead, in a thread."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        batches: queue.Queue[Any] = queue.Queue(1)
        source = super().__iter__()

        def load() -> None:
            for batch in source:
                batches.put(batch)
            batches.put(None)

        threading.Thread(target=load, daemon=True).start()
        return iter(batches.get, None)


def losses_of(model: nn.Module, frames: Frames, begins: bool) -> list[float]:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    if begins:
        openpcdet.begin(model, optimizer)
    seed(3)
    losses = []
    for batch in DataLoaderX(frames, 2):
        model.train()
        loss = model({**batch, "batch_size": 2})[0]["loss"]
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def let_loader_draw_in_reruns(model: Any, frames: Frames) -> None:
    """Each further forward of the backbone lets the loader's thread draw, and waits until it has."""
    calls: list[nn.Module] = []

    def hook(module: nn.Module, args: Any) -> None:
        calls.append(module)
        if len(calls) == 2:
            frames.turn.set()
            frames.has_drawn.wait(1)

    model.backbone_3d.register_forward_pre_hook(hook)


def by_hand(standin: Standin) -> nn.Module:
    model = standin.build("second")
    frozen = model.backbone_3d.eval().requires_grad_(False)
    for module in frozen.modules():
        module.train = lambda mode=True, module=module: module
    return model


@pytest.fixture
def by_hand_run(standin: Standin) -> tuple[list[float], Frames]:
    """Losses and frames by hand; two such runs agree, since only the loader draws from numpy's generator."""
    frames = Frames()
    first, second = (losses_of(by_hand(standin), data, False) for data in (frames, Frames()))
    assert first == second and len(first) == 6
    return first, frames


@pytest.mark.parametrize("fuse", [False, True])
def test_numbers_that_the_loader_draws_are_those_of_a_run_by_hand(
    standin: Standin, by_hand_run: tuple[list[float], Frames], fuse: bool
) -> None:
    openpcdet.install()
    model, frames = standin.build("second", ["backbone_3d"], FUSE=fuse), Frames()
    let_loader_draw_in_reruns(model, frames)
    losses = losses_of(model, frames, True)
    assert losses == pytest.approx(by_hand_run[0], rel=1e-4 if fuse else 0, abs=0)
    assert all(map(np.array_equal, frames.drawn, by_hand_run[1].drawn)) and len(frames.drawn) == 12
