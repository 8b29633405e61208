"""The audit of the optimizer and of its gradients (P5): what trains is in one group, and gets gradients."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.utils.distributed import unwrap

STEPS = 20
"""how many steps that were not skipped are looked at"""


def check_groups(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """FreezeError unless each trainable parameter is in exactly one group, and no other one in any."""
    places = Counter(id(parameter) for group in optimizer.param_groups for parameter in group["params"])
    named = list(unwrap(model).named_parameters())
    groups = (
        ("train but are in no group, so they would never move", [n for n, p in named if _is_out(p, places)]),
        ("are in a group twice, so they would move twice", [n for n, p in named if places[id(p)] > 1]),
        (
            "do not train but are in a group, where weight decay and momentum could move them",
            [n for n, p in named if not p.requires_grad and places[id(p)]],
        ),
    )
    faults = [f"  {', '.join(names[:8])}{_more(names)} {what}" for what, names in groups if names]
    if faults:
        raise FreezeError(
            "Each parameter that trains must be in exactly one optimizer group, and no other in any, but:\n"
            + "\n".join(faults)
            + "\nBuild the optimizer over model.parameters() that require a gradient, after freezing."
        )


def _is_out(parameter: nn.Parameter, places: Counter[int]) -> bool:
    return parameter.requires_grad and not places[id(parameter)]


def _more(names: Sequence[str]) -> str:
    return f" and {len(names) - 8} more" if len(names) > 8 else ""


class GradientAudit:
    """Looks at the gradients of the first ``STEPS`` steps that the optimizer really makes.

    It is a pre-hook of the optimizer's ``step``, which a GradScaler does not call for a step that it skips.
    """

    def __init__(self, model: nn.Module, frozen: Callable[[], Sequence[nn.Parameter]]) -> None:
        self.model, self.frozen = unwrap(model), frozen
        self.steps = 0
        self._missing: Counter[str] = Counter()
        self._all_zero: set[str] | None = None
        self._done = False

    @property
    def done(self) -> bool:
        """Whether the verdict is out."""
        return self._done

    def look(self) -> list[str]:
        """Note the gradients of one step; faults that need no more steps, one line each."""
        self.steps += 1
        ours = {id(parameter) for parameter in self.frozen()}
        zero: dict[str, torch.Tensor] = {}
        faults = []
        for name, parameter in self.model.named_parameters():
            if id(parameter) in ours:
                if parameter.grad is not None:
                    faults.append(f"{name} is frozen, but has a gradient")
            elif parameter.requires_grad and parameter.grad is None:
                self._missing[name] += 1
            elif parameter.requires_grad and (self._all_zero is None or name in self._all_zero):
                assert parameter.grad is not None
                zero[name] = parameter.grad.ne(0).any()
        moved = torch.stack(list(zero.values())).tolist() if zero else []
        self._all_zero = {name for name, hit in zip(zero, moved, strict=True) if not hit} | {
            name for name in self._all_zero or () if name not in zero
        }
        return faults

    def verdict(self) -> tuple[list[str], list[str]]:
        """(faults, notes) over all steps that were looked at; called once, when they are over."""
        self._done = True
        never = [name for name, count in self._missing.items() if count == self.steps]
        faults = [f"{name} trains, but had no gradient in any of {self.steps} steps" for name in never]
        notes = [
            f"{name} had no gradient in {count} of {self.steps} steps"
            for name, count in self._missing.items()
            if count < self.steps
        ]
        zero = sorted((self._all_zero or set()) - set(self._missing))
        notes += [f"the gradient of {name} was zero in all of {self.steps} steps" for name in zero]
        return faults, notes
