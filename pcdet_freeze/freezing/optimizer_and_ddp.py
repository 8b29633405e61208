"""Remove frozen parameters from an optimizer; refuse changes under a live DistributedDataParallel."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError

_INNER = ("optimizer", "opt", "optim", "base_optimizer", "_optimizer")


def optimizers(optimizer: Any) -> list[Any]:
    """``optimizer`` and the optimizers that it wraps, those that have parameter groups.

    Raises FreezeError where none has.
    """
    found: list[Any] = []
    pending = [optimizer]
    while pending:
        candidate = pending.pop()
        if candidate is None or any(candidate is known for known in found):
            continue
        if isinstance(getattr(candidate, "param_groups", None), list):
            found.append(candidate)
        elif candidate is not optimizer:
            continue
        pending += [getattr(candidate, name, None) for name in _INNER]
    if not found:
        raise FreezeError(
            f"optimizer must be a torch optimizer or wrap one as .optimizer; got {type(optimizer).__name__}"
        )
    return found


def take_out(found: Iterable[Any], parameters: Iterable[nn.Parameter]) -> None:
    """Remove ``parameters`` and their state. Groups stay, even empty: schedulers rely on their number."""
    gone = {id(parameter) for parameter in parameters}
    for optimizer in found:
        for group in optimizer.param_groups:
            stays = [id(p) not in gone for p in group["params"]]
            for key in ("params", "param_names"):
                if key in group:
                    group[key][:] = [item for item, stay in zip(group[key], stays, strict=True) if stay]
        state = getattr(optimizer, "state", {})
        for parameter in [p for p in state if id(p) in gone]:
            del state[parameter]


def live_ddp(parameters: Iterable[nn.Parameter]) -> str | None:
    """Type name of a DistributedDataParallel that has any of ``parameters``, or None.

    A model has no reference to the DDP that wraps it, and neither has torch outside of a forward, so this
    goes through the objects that Python's garbage collector tracks.
    """
    wanted = {id(parameter) for parameter in parameters}
    if not wanted or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return None
    if not any(True for _ in _wrappers(wanted)):
        return None
    gc.collect()  # one that was dropped may only wait for collection
    return next(_wrappers(wanted), None)


def _wrappers(wanted: set[int]) -> Iterator[str]:
    kind = nn.parallel.DistributedDataParallel
    for candidate in gc.get_objects():
        is_live = issubclass(type(candidate), kind) and "module" in candidate.__dict__.get("_modules", {})
        if is_live and any(id(parameter) in wanted for parameter in candidate.parameters()):
            yield type(candidate).__name__


def refuse_live_ddp(parameters: Iterable[nn.Parameter], verb: str) -> None:
    """Raise FreezeError where ``verb``-ing would change parameters under a live DistributedDataParallel."""
    name = live_ddp(parameters)
    if name is not None:
        raise FreezeError(
            f"cannot {verb} parameters under a live {name}: its reducer was built for the previous "
            f"trainable parameters, so ranks "
            f"would hang or diverge. {verb.capitalize()} first and wrap after, or delete the wrapper, "
            f"{verb}, and wrap again"
        )
