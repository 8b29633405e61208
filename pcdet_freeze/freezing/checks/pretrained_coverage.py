"""Pretrained coverage (P4): an error for frozen weights that were never loaded from a checkpoint.

A tensor is loaded if a tensor of a file with its name (or an alias) and shape was copied into it. A resumed
checkpoint loads all. Exempt are

* non-persistent buffers, which no file holds, ``num_batches_tracked`` and the detector's step counter;
* constant buffers: bitwise equal in a second build of the model under another seed, so they come from the
  config, not from random numbers or training. Running statistics of norm layers start equal too and do not
  count as constant; nor, to be safe, do float buffers that are all 0 or all 1, as averages start;
* the learned loss weight of a fully frozen head: it starts at 1, and the head gives no loss.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezeHandle, is_fully_frozen, layer_types
from pcdet_freeze.freezing.checks.loss_reachability import outermost_unreached
from pcdet_freeze.freezing.entries.paths import find, segments_match
from pcdet_freeze.freezing.verification.certificate import COUNTER, frozen_tensors
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.loader_threads import wait_for_loader_threads
from pcdet_freeze.utils.rng import set_seed, untouched_rng
from pcdet_freeze.utils.tensors import same_bits

LOSS_SCALE = "loss_scale"
"""its name in heads (models.loss_weights.NAME; models are not imported here)"""
SEED = 271828
"""of the second build; any seed other than that of the run"""


def check_pretrained_coverage(
    handle: FreezeHandle, loaded: Collection[str], rebuild: Callable[[], nn.Module] | None = None
) -> None:
    """Raise FreezeError for frozen tensors that were not loaded, unless FREEZE.ALLOW_RANDOM allows them.

    Args:
        loaded: names in the model's ``state_dict`` that were loaded from files.
        rebuild: builds the same model again, to find constant buffers; without it no buffer is constant.
    """
    allowed = handle.plan.allow_random
    if allowed is True or not handle.plan.parameters:
        return
    is_loaded = needed(handle, loaded)
    if isinstance(allowed, tuple):
        _check_names(allowed, handle)
        is_loaded |= {
            name: True for name in is_loaded if any(segments_match(name, entry) for entry in allowed)
        }
    names = [name for name, loaded_one in is_loaded.items() if not loaded_one]
    for name in constants(handle.model, names, rebuild):
        del is_loaded[name]
        names.remove(name)
    if not names:
        return
    groups = outermost_unreached(handle.model, {**_live(handle), **is_loaded})
    lines = [f"  {group}{_count(group, names)}" for group in groups[:12]]
    lines += [f"  and {len(groups) - 12} more"] if len(groups) > 12 else []
    raise FreezeError(
        "Frozen weights must be loaded from a checkpoint, but these were never loaded and would keep their "
        "initial values:\n"
        + "\n".join(lines)
        + "\nLoad a file that holds them with --pretrained_model, remove them from "
        "MODEL.NOT_TRAIN_IN_MULTI_TASK, or, to freeze random weights, set FREEZE.ALLOW_RANDOM: True or "
        f"FREEZE.ALLOW_RANDOM: [{', '.join(groups[:3])}]."
    )


def needed(handle: FreezeHandle, loaded: Collection[str]) -> dict[str, bool]:
    """Name of each frozen tensor that must be loaded -> whether it was; with constants."""
    there = {id(tensor) for name, tensor in _everything(handle.model) if name in loaded}
    return {
        name: id(tensor) in there
        for name, tensor, persistent in _tensors(handle)
        if persistent and not _is_counter(name) and not _is_unused_loss_weight(handle, name)
    }


def _is_counter(name: str) -> bool:
    """Whether tensor ``name`` counts the batches of a norm layer or the steps of the detector itself."""
    return name == COUNTER or name.rpartition(".")[2] == "num_batches_tracked"


def _is_unused_loss_weight(handle: FreezeHandle, name: str) -> bool:
    """Whether tensor ``name`` is the learned loss weight of a fully frozen head."""
    head, _, own = name.rpartition(".")[0].rpartition(".")
    found = find(unwrap(handle.model), head) if own == LOSS_SCALE else None
    return found is not None and is_fully_frozen(found[0])


def constants(model: nn.Module, names: Iterable[str], rebuild: Callable[[], nn.Module] | None) -> list[str]:
    """The constant buffers among ``names``; a second model is built only where one may be."""
    buffers = dict(unwrap(model).named_buffers(remove_duplicate=False))
    candidates = [name for name in names if name in buffers and _may_be_constant(model, name, buffers[name])]
    if not candidates or rebuild is None:
        return []
    wait_for_loader_threads()
    with untouched_rng():
        set_seed(SEED)
        other = dict(unwrap(rebuild()).named_buffers(remove_duplicate=False))
    return [name for name in candidates if name in other and same_bits(other[name], buffers[name])]


def _may_be_constant(model: nn.Module, name: str, buffer: torch.Tensor) -> bool:
    found = find(unwrap(model), name.rpartition(".")[0])
    if found is not None and layer_types.is_norm(unwrap(found[0])):
        return False
    return not buffer.is_floating_point() or not bool((buffer == 0).all() | (buffer == 1).all())


def _tensors(handle: FreezeHandle) -> list[tuple[str, torch.Tensor, bool]]:
    request = handle.request
    return [] if request is None else list(frozen_tensors(handle.model, request, with_ignored=True))


def _live(handle: FreezeHandle) -> dict[str, bool]:
    """Trainable tensors count as loaded, so that a module that is frozen in part is not named as a whole."""
    frozen = {id(tensor) for _, tensor, _ in _tensors(handle)}
    return {name: True for name, tensor in _everything(handle.model) if id(tensor) not in frozen}


def _everything(model: nn.Module) -> Iterable[tuple[str, torch.Tensor]]:
    yield from unwrap(model).named_parameters(remove_duplicate=False)
    yield from unwrap(model).named_buffers(remove_duplicate=False)


def _check_names(allowed: Iterable[str], handle: FreezeHandle) -> None:
    names = [name for name, _, _ in _tensors(handle)]
    idle = [pattern for pattern in allowed if not any(segments_match(name, pattern) for name in names)]
    if idle:
        raise FreezeError(
            f"FREEZE.ALLOW_RANDOM must name frozen modules, but nothing is frozen in {', '.join(idle)}. "
            "Write names as in MODEL.NOT_TRAIN_IN_MULTI_TASK, or True for everything."
        )


def _count(group: str, names: Collection[str]) -> str:
    inside = sum(name.startswith(group + ".") for name in names)
    return f" ({inside} tensor{'' if inside == 1 else 's'})" if inside else ""
