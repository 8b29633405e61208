"""Optimizer audit (P5): each trainable parameter is in exactly one param group and gets gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.utils.distributed import unwrap

STEPS = 20
"""number of audited steps; steps that the GradScaler skips do not count"""


def check_groups(model: nn.Module, optimizer: torch.optim.Optimizer, left_out: Collection[str] = ()) -> None:
    """Raise FreezeError unless each trainable parameter is in exactly one group, and frozen ones in none.

    Args:
        left_out: names of trainable parameters that may be in no group.
    """
    places = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    named = list(unwrap(model).named_parameters())
    groups = (
        (
            "trainable, but in no group (never updated)",
            [n for n, p in named if _is_out(p, places) and n not in left_out],
        ),
        ("in more than one group (updated twice in each step)", [n for n, p in named if places[id(p)] > 1]),
        (
            "frozen, but in a group (weight decay and momentum could change it)",
            [n for n, p in named if not p.requires_grad and places[id(p)]],
        ),
    )
    faults = [f"  {what}: {', '.join(names[:8])}{_more(names)}" for what, names in groups if names]
    if faults:
        raise FreezeError(
            "Each trainable parameter must be in exactly one optimizer group, and frozen ones in none, but:\n"
            + "\n".join(faults)
            + "\nFreeze first, then build the optimizer from the parameters with requires_grad=True."
        )


def _is_out(parameter: nn.Parameter, places: Counter[int]) -> bool:
    return parameter.requires_grad and not places[id(parameter)]


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 8} more" if len(names) > 8 else ""


class GradientAudit:
    """Checks the gradients of the first ``STEPS`` optimizer steps.

    Call :meth:`look` in a step pre-hook of the optimizer, unless the step :func:`.is_skipped`.

    Args:
        frozen: returns the frozen parameters of ``model``.
    """

    def __init__(self, model: nn.Module, frozen: Callable[[], Sequence[nn.Parameter]]) -> None:
        self.model, self.frozen = unwrap(model), frozen
        self.steps = 0
        self._missing: Counter[str] = Counter()
        self._all_zero: set[str] | None = None
        self._done = False

    @property
    def done(self) -> bool:
        """Whether :meth:`verdict` was called."""
        return self._done

    def look(self) -> list[str]:
        """Record the gradients of one step; returns faults that are certain already, one line each."""
        self.steps += 1
        frozen = {id(parameter) for parameter in self.frozen()}
        zero: dict[str, torch.Tensor] = {}
        faults = []
        for name, parameter in self.model.named_parameters():
            if id(parameter) in frozen:
                if parameter.grad is not None:
                    faults.append(f"{name} is frozen, but has a gradient")
            elif parameter.requires_grad and parameter.grad is None:
                self._missing[name] += 1
            elif parameter.requires_grad and (self._all_zero is None or name in self._all_zero):
                assert parameter.grad is not None
                zero[name] = parameter.grad.ne(0).any()
        nonzero = torch.stack(list(zero.values())).tolist() if zero else []
        self._all_zero = {name for name, hit in zip(zero, nonzero, strict=True) if not hit} | {
            name for name in self._all_zero or () if name not in zero
        }
        return faults

    def verdict(self) -> tuple[list[str], list[str]]:
        """(faults, notes) over all audited steps, one line each; call it once, after the last."""
        self._done = True
        never = [name for name, count in self._missing.items() if count == self.steps]
        faults = [f"{name} is trainable, but had no gradient in any of {self.steps} steps" for name in never]
        notes = [
            f"{name} had no gradient in {count} of {self.steps} steps"
            for name, count in self._missing.items()
            if count < self.steps
        ]
        zero = sorted((self._all_zero or set()) - set(self._missing))
        notes += [f"the gradient of {name} was zero in all of {self.steps} steps" for name in zero]
        return faults, notes
