"""Frozen heads inside a detector that adds its losses by hand (T1).

A detector of OpenPCDet calls ``head(batch_dict)`` and ``head.get_loss(tb_dict)`` where its own code says so.
So the head itself is made quiet while it is frozen whole, and the detector's code stays as it is:

* ``get_loss`` gives an exact zero without a graph: ``x + 0.0`` is ``x``, bit for bit;
* its training forward runs as in eval, without a graph, on a shallow copy of the batch: no targets are
  assigned, no labels are read or changed. It is never skipped: OpenPCDet's modules do not declare the keys
  that they read.

Another module with a loss of its own (an image encoder, a backbone that learns which voxels matter) loses
that loss too, and keeps its graph: gradients flow through it to what trains before it (H9).

All this lies on the modules as plain instance attributes, which copies and pickles take along.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import is_fully_frozen
from pcdet_freeze.freezing.eval_lock import eval_mode, requested_mode
from pcdet_freeze.freezing.paths import unwrap
from pcdet_freeze.freezing.state import freeze_version

KEPT = "_pcdet_freeze_kept"
"""on a module: name of a replaced method -> the instance attribute that was there before, or None"""
GIVEN = "_pcdet_freeze_given"
"""on a quiet head: the keys with which the batch came from the loader"""


@dataclass(frozen=True)
class Part:
    """A module that the detector's own code calls."""

    name: str
    module: nn.Module
    """without wrappers"""
    gives_loss: bool
    """it has a ``get_loss``"""
    is_head: bool
    """it is a task head: named so, or with a loss and targets"""

    @property
    def is_frozen(self) -> bool:
        """Whether it is frozen whole."""
        return is_fully_frozen(self.module)


def parts(detector: nn.Module) -> list[Part]:
    """The children of ``detector``; of a list or dict of modules, what is in it."""
    return [_part(name, unwrap(module)) for name, module in _children(detector)]


def _children(detector: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in unwrap(detector).named_children():
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from ((f"{name}.{key}", module) for key, module in child.named_children())
        else:
            yield name, child


def _part(name: str, module: nn.Module) -> Part:
    gives_loss = callable(getattr(module, "get_loss", None))
    called_head = name.partition(".")[0].endswith(("head", "heads"))
    is_head = called_head or (gives_loss and callable(getattr(module, "assign_targets", None)))
    return Part(name, module, gives_loss, is_head)


_known: WeakKeyDictionary[nn.Module, tuple[object, tuple[int, ...], list[Part]]] = WeakKeyDictionary()


def quieten(detector: nn.Module) -> list[Part]:
    """Make every head that is frozen whole quiet, and let every other one be itself; returns the quiet ones.

    Worked out once for each state of freezing, and looked up after that.
    """
    stamp, children, known = (
        freeze_version(unwrap(detector)),
        tuple(id(m) for _, m in _children(detector)),
        _known.get(detector),
    )
    if known is None or known[0] != stamp or known[1] != children:
        known = stamp, children, _quieten(detector)
        _known[detector] = known
    return known[2]


def _quieten(detector: nn.Module) -> list[Part]:
    quiet = []
    for part in parts(detector):
        if part.is_frozen and (part.gives_loss or part.is_head):
            quiet.append(part)
            if part.gives_loss:
                put(part.module, "get_loss", partial(_no_loss, part.module))
            if part.is_head:
                put(part.module, "forward", partial(_run_in_eval_mode, part.module))
        else:
            restore(part.module)
    return quiet


def require_loss(detector: nn.Module) -> None:
    """Raise FreezeError where every part of ``detector`` that may give a loss is frozen whole (T3)."""
    able = [part for part in parts(detector) if part.gives_loss or part.is_head]
    if able and all(part.is_frozen for part in able):
        raise FreezeError(
            f"A loss must be left to train with, but in {type(unwrap(detector)).__name__} every head is "
            f"frozen whole: {', '.join(part.name for part in able)}. Take one out of "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK, or leave a part of it live (`!dense_head.conv_cls`)."
        )


def explain_heads(detector: nn.Module) -> list[str]:
    """One line for each module whose loss does not enter."""
    lines = []
    for part in parts(detector):
        if not part.is_frozen or not (part.gives_loss or part.is_head):
            continue
        if part.is_head:
            why = "it does not declare what it writes, so it may be needed"
            lines.append(f"{part.name} gives no loss; in training it runs as in eval: {why}")
        else:
            lines.append(f"{part.name} gives no loss of its own")
    return lines


def note_given(quiet: list[Part], batch: Any) -> None:
    """Tell quiet heads which keys came with the batch: they never replace those. None: no training now."""
    for part in quiet:
        if batch is None:
            part.module.__dict__.pop(GIVEN, None)
        else:
            part.module.__dict__[GIVEN] = frozenset(batch) if isinstance(batch, dict) else frozenset()


def put(module: nn.Module, name: str, method: Any) -> None:
    """Let ``module.name`` be ``method`` until :func:`restore`."""
    kept = module.__dict__.setdefault(KEPT, {})
    if name not in kept:
        kept[name] = module.__dict__.get(name)
        module.__dict__[name] = method


def plain(module: nn.Module, name: str) -> Any:
    """The method that :func:`put` replaced."""
    before = module.__dict__.get(KEPT, {}).get(name)
    return getattr(type(module), name).__get__(module) if before is None else before


def restore(module: nn.Module) -> None:
    """Take off all that was put on ``module``."""
    for name, before in module.__dict__.pop(KEPT, {}).items():
        if before is None:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = before
    module.__dict__.pop(GIVEN, None)


def _no_loss(module: nn.Module, tb_dict: Any = None, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """What ``get_loss`` of a quiet module gives: a fresh zero each time: some detectors add in place."""
    like = next(module.parameters(), torch.zeros(()))
    return torch.zeros((), dtype=like.dtype, device=like.device), {} if tb_dict is None else tb_dict


def _run_in_eval_mode(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """The forward of a quiet head. Of what it writes, the keys that the loader gave are not taken over."""
    forward, given = plain(module, "forward"), module.__dict__.get(GIVEN)
    if given is None and not requested_mode(
        module
    ):  # a head that runs again, in eval, to be compared has it still
        return forward(*args, **kwargs)
    words: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    place = next((key for key, value in words.items() if isinstance(value, dict)), None)
    batch = {} if place is None else words[place]
    if place is not None:
        words[place] = copy(batch)
    with torch.no_grad(), eval_mode(module):
        found = forward(*(words[index] for index in range(len(args))), **{key: words[key] for key in kwargs})
    if place is None:
        return found
    written = found if isinstance(found, dict) else words[place]
    given = frozenset(batch) if given is None else given
    batch.update({key: value for key, value in written.items() if key not in given})
    return batch if isinstance(found, dict) else found
