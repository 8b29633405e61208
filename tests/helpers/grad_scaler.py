"""A GradScaler for the CPU: torch's own, which torch 2.2 does not have yet, else one of the same protocol.

And an optimizer that a GradScaler treats as a fused one.
"""

from __future__ import annotations

from typing import Any

import torch


class LossScaler:
    """Scales the loss, and skips steps with infinite gradients, as ``torch.amp.GradScaler`` does."""

    def __init__(self, init_scale: float) -> None:
        self.factor = init_scale
        self._unscaled = self._infinite = False

    def is_enabled(self) -> bool:
        return True

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        return loss * self.factor

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        for grad in grads:
            grad.div_(self.factor)
        self._unscaled, self._infinite = True, not all(grad.isfinite().all() for grad in grads)

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self._unscaled:
            self.unscale_(optimizer)
        if not self._infinite:
            optimizer.step()

    def update(self) -> None:
        self.factor *= 0.5 if self._infinite else 1.0
        self._unscaled = self._infinite = False

    def state_dict(self) -> dict[str, Any]:
        return {"scale": self.factor}


def cpu_grad_scaler(init_scale: float = 2.0**16) -> Any:
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler("cpu", init_scale=init_scale)
    return LossScaler(init_scale)


class FusedSGD(torch.optim.Optimizer):
    """A GradScaler always calls ``step()``, which does nothing where ``found_inf`` is not zero."""

    _step_supports_amp_scaling = True
    found_inf: torch.Tensor | None = None

    def __init__(self, parameters: Any, lr: float = 0.1) -> None:
        super().__init__([p for p in parameters if p.requires_grad], {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        skips = self.found_inf is not None and self.found_inf > 0
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and not skips:
                    parameter.sub_(parameter.grad, alpha=group["lr"])
