"""A training loop of a user's own with the checks of the first steps, and a frozen part to put into it."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.checks.first_steps import FirstSteps


class Part(nn.Module):
    """A part with weights, to subclass."""

    takes_batch = False

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Any) -> Any:
        return self.linear(x)


class Detector(nn.Module):
    """before -> vfe (frozen) -> head, called as a detector is."""

    def __init__(self, vfe: nn.Module, before: nn.Module | None) -> None:
        super().__init__()
        self.before, self.vfe, self.head = before or nn.Identity(), vfe, nn.Linear(4, 1)

    def forward(self, batch: dict[str, Any]) -> Any:
        if getattr(self.vfe, "takes_batch", False):
            features = self.vfe(batch)["features"]
        else:
            features = self.vfe(self.before(batch["x"]))
        return {"loss": self.head(features).square().mean()}, {}, {}


class Loop:
    """Each step gets a batch of its own."""

    def __init__(
        self,
        vfe: nn.Module,
        *,
        before: nn.Module | None = None,
        checked: bool = True,
        rows: int = 8,
        plan: FreezePlan | None = None,
    ) -> None:
        self.model = Detector(vfe, before).train()
        self.rows = rows
        self.handle = freeze(self.model, plan or ["vfe"])
        self.start = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.optimizer = torch.optim.SGD([p for p in self.model.parameters() if p.requires_grad], lr=0.1)
        self.checks = FirstSteps(logging.getLogger("first_steps"))
        if checked:
            self.checks.watch(self.handle, self.model, self.optimizer)

    def batch(self) -> dict[str, Any]:
        return {"x": torch.randn(self.rows, 4)}

    def forward(self, batch: dict[str, Any] | None = None) -> Tensor:
        loss: Tensor = self.model(self.batch() if batch is None else batch)[0]["loss"]
        return loss

    def step(self, batch: dict[str, Any] | None = None) -> Tensor:
        """The loss of one step."""
        self.optimizer.zero_grad()
        loss = self.forward(batch)
        loss.backward()
        self.optimizer.step()
        return loss.detach()
