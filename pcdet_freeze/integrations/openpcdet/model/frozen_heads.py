"""Fully frozen heads in a detector of OpenPCDet (T1): they give no loss and run in eval mode.

A detector of OpenPCDet calls ``head(batch_dict)`` and ``head.get_loss(tb_dict)`` in its own code, which stays
unchanged. Two methods of a fully frozen head are replaced instead:

* ``get_loss`` returns an exact zero without a graph: ``x + 0.0`` is ``x``, bit for bit;
* ``forward`` runs in eval mode, without a graph, on a shallow copy of the batch: no targets are assigned, no
  labels are read or changed. It is never skipped: OpenPCDet's modules do not declare the keys that they read.

Another module with a loss of its own (an image encoder, a backbone that learns the importance of voxels)
loses that loss too, and keeps its graph: gradients flow through it to trainable modules before it (H9).

The replacements are plain instance attributes of the modules, so copies and pickles keep them.
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
from pcdet_freeze.freezing.entries.paths import unwrap
from pcdet_freeze.freezing.eval_lock import eval_mode, requested_mode
from pcdet_freeze.freezing.state import freeze_version

ORIGINALS = "_pcdet_freeze_originals"
"""on a module: name of a replaced method -> the instance attribute of that name before, or None"""
BATCH_KEYS = "_pcdet_freeze_batch_keys"
"""on a patched head: the keys of the batch from the loader"""


@dataclass(frozen=True)
class Part:
    """A module that the detector calls."""

    name: str
    module: nn.Module
    """without its wrappers"""
    gives_loss: bool
    """whether it has a ``get_loss``"""
    is_head: bool
    """whether it is a task head: named ``...head``, or with a loss and targets"""

    @property
    def is_frozen(self) -> bool:
        """Whether it is fully frozen."""
        return is_fully_frozen(self.module)


def parts(detector: nn.Module) -> list[Part]:
    """The children of ``detector``; for a ModuleList or ModuleDict, the modules in it."""
    return [_part(name, unwrap(module)) for name, module in _children(detector)]


def _children(detector: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in unwrap(detector).named_children():
        if type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from ((f"{name}.{key}", module) for key, module in child.named_children())
        else:
            yield name, child


def _part(name: str, module: nn.Module) -> Part:
    gives_loss = callable(getattr(module, "get_loss", None))
    named_head = name.partition(".")[0].endswith(("head", "heads"))
    is_head = named_head or (gives_loss and callable(getattr(module, "assign_targets", None)))
    return Part(name, module, gives_loss, is_head)


_cache: WeakKeyDictionary[nn.Module, tuple[object, tuple[int, ...], list[Part]]] = WeakKeyDictionary()


def patch_frozen_heads(detector: nn.Module) -> list[Part]:
    """Patch every fully frozen head and restore every other part; returns the patched parts.

    Cached until the freeze or the children of ``detector`` change.
    """
    stamp, children, cached = (
        freeze_version(unwrap(detector)),
        tuple(id(m) for _, m in _children(detector)),
        _cache.get(detector),
    )
    if cached is None or cached[0] != stamp or cached[1] != children:
        cached = stamp, children, _patch(detector)
        _cache[detector] = cached
    return cached[2]


def _patch(detector: nn.Module) -> list[Part]:
    patched = []
    for part in parts(detector):
        if part.is_frozen and (part.gives_loss or part.is_head):
            patched.append(part)
            if part.gives_loss:
                replace_method(part.module, "get_loss", partial(_no_loss, part.module))
            if part.is_head:
                replace_method(part.module, "forward", partial(_run_in_eval_mode, part.module))
        else:
            restore(part.module)
    return patched


def require_loss(detector: nn.Module) -> None:
    """Raise FreezeError if every part of ``detector`` that may give a loss is fully frozen (T3)."""
    sources = [part for part in parts(detector) if part.gives_loss or part.is_head]
    if sources and all(part.is_frozen for part in sources):
        raise FreezeError(
            f"At least one head must give a loss, but in {type(unwrap(detector)).__name__} every head is "
            f"fully frozen: {', '.join(part.name for part in sources)}. Remove one from "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK, or exempt a part of it (`!dense_head.conv_cls`)."
        )


def explain_heads(detector: nn.Module) -> list[str]:
    """One line for each module whose loss is removed."""
    lines = []
    for part in parts(detector):
        if not part.is_frozen or not (part.gives_loss or part.is_head):
            continue
        if part.is_head:
            lines.append(
                f"{part.name} gives no loss; in training it runs in eval mode, because other modules may use "
                "its outputs"
            )
        else:
            lines.append(f"{part.name} gives no loss of its own")
    return lines


def set_batch_keys(patched: list[Part], batch: Any) -> None:
    """Store the keys of the loader's batch, which patched heads never overwrite. None: no training."""
    for part in patched:
        if batch is None:
            part.module.__dict__.pop(BATCH_KEYS, None)
        else:
            part.module.__dict__[BATCH_KEYS] = frozenset(batch) if isinstance(batch, dict) else frozenset()


def replace_method(module: nn.Module, name: str, method: Any) -> None:
    """Replace ``module.name`` by ``method`` until :func:`restore`."""
    originals = module.__dict__.setdefault(ORIGINALS, {})
    if name not in originals:
        originals[name] = module.__dict__.get(name)
        module.__dict__[name] = method


def original(module: nn.Module, name: str) -> Any:
    """The method that :func:`replace_method` replaced."""
    before = module.__dict__.get(ORIGINALS, {}).get(name)
    return getattr(type(module), name).__get__(module) if before is None else before


def restore(module: nn.Module) -> None:
    """Restore all replaced methods of ``module``."""
    for name, before in module.__dict__.pop(ORIGINALS, {}).items():
        if before is None:
            module.__dict__.pop(name, None)
        else:
            module.__dict__[name] = before
    module.__dict__.pop(BATCH_KEYS, None)


def _no_loss(module: nn.Module, tb_dict: Any = None, *args: Any, **kwargs: Any) -> tuple[Tensor, Any]:
    """``get_loss`` of a fully frozen module: a new zero in each call, since some detectors add in place."""
    like = next(module.parameters(), torch.zeros(()))
    return torch.zeros((), dtype=like.dtype, device=like.device), {} if tb_dict is None else tb_dict


def _run_in_eval_mode(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """``forward`` of a fully frozen head. Keys of the loader's batch are not overwritten."""
    forward, loaded_keys = original(module, "forward"), module.__dict__.get(BATCH_KEYS)
    # the determinism check runs a head again in eval mode while the keys are still set
    if loaded_keys is None and not requested_mode(module):
        return forward(*args, **kwargs)
    inputs: dict[Any, Any] = {**dict(enumerate(args)), **kwargs}
    batch_at = next((key for key, value in inputs.items() if isinstance(value, dict)), None)
    batch = {} if batch_at is None else inputs[batch_at]
    if batch_at is not None:
        inputs[batch_at] = copy(batch)
    with torch.no_grad(), eval_mode(module):
        output = forward(
            *(inputs[index] for index in range(len(args))), **{key: inputs[key] for key in kwargs}
        )
    if batch_at is None:
        return output
    written = output if isinstance(output, dict) else inputs[batch_at]
    loaded_keys = frozenset(batch) if loaded_keys is None else loaded_keys
    batch.update({key: value for key, value in written.items() if key not in loaded_keys})
    return batch if isinstance(output, dict) else output
