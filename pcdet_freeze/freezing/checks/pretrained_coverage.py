"""Frozen weights that no checkpoint supplied (P4): freezing noise keeps noise.

A tensor is supplied where a file's tensor of its name (or of an alias of it) and shape was copied into it.
What a resumed checkpoint holds is all supplied. Exempt are

* non-persistent buffers, which no file holds, ``num_batches_tracked`` and the detector's step counter;
* constant buffers: those that another build of the same model, under another seed, has to the bit, so they
  come from the config and not from chance or from training. Running statistics of norm layers also begin
  alike and are none of these; nor is, to be safe, a float buffer that is all 0 or all 1, as averages begin;
* the learned loss weight of a head that is frozen whole: it begins at 1, and the head gives no loss to weigh.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezeHandle, is_fully_frozen, layer_types
from pcdet_freeze.freezing.certificate import COUNTER, frozen_tensors
from pcdet_freeze.freezing.checks.loss_reachability import outermost_unreached
from pcdet_freeze.freezing.paths import find, segments_match
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.rng import set_seed, untouched_rng
from pcdet_freeze.utils.tensors import same_bits

LOSS_SCALE = "loss_scale"
"""what heads call it (models.loss_weights.NAME; nothing of the models is imported inside an OpenPCDet)"""
COUNTERS = ("num_batches_tracked", COUNTER)
SEED = 271828
"""of the second build; any seed that is not the run's own will do"""


def check_pretrained_coverage(
    handle: FreezeHandle, loaded: Collection[str], rebuild: Callable[[], nn.Module] | None = None
) -> None:
    """Raise FreezeError that names what is frozen though nothing loaded it, unless FREEZE.ALLOW_RANDOM does.

    Args:
        loaded: names of the tensors of the model's ``state_dict`` that files supplied.
        rebuild: builds the same model anew, to tell constant buffers; without it none counts as constant.
    """
    allowed = handle.plan.allow_random
    if allowed is True or not handle.plan.parameters:
        return
    supplied = needed(handle, loaded)
    if isinstance(allowed, tuple):
        _check_names(allowed, handle)
        supplied |= {name: True for name in supplied if any(segments_match(name, entry) for entry in allowed)}
    names = [name for name, is_there in supplied.items() if not is_there]
    for name in constants(handle.model, names, rebuild):
        del supplied[name]
        names.remove(name)
    if not names:
        return
    groups = outermost_unreached(handle.model, {**_live(handle), **supplied})
    lines = [f"  {group}{_count(group, names)}" for group in groups[:12]]
    lines += [f"  and {len(groups) - 12} more"] if len(groups) > 12 else []
    raise FreezeError(
        "What is frozen must come from a checkpoint, but no loaded file supplied these, so they would stay "
        "as they were initialised:\n"
        + "\n".join(lines)
        + "\nGive the file that holds them as --pretrained_model, take them out of "
        "MODEL.NOT_TRAIN_IN_MULTI_TASK, or, if you want random weights, set FREEZE.ALLOW_RANDOM: True or "
        f"FREEZE.ALLOW_RANDOM: [{', '.join(groups[:3])}]."
    )


def needed(handle: FreezeHandle, loaded: Collection[str]) -> dict[str, bool]:
    """Name of each frozen tensor that a file must supply -> whether one did; constants are among them."""
    there = {id(tensor) for name, tensor in _everything(handle.model) if name in loaded}
    return {
        name: id(tensor) in there
        for name, tensor, persistent in _tensors(handle)
        if persistent and name.rpartition(".")[2] not in COUNTERS and not _weighs_nothing(handle, name)
    }


def _weighs_nothing(handle: FreezeHandle, name: str) -> bool:
    """Whether tensor ``name`` is the learned loss weight of a head that is frozen whole."""
    head, _, own = name.rpartition(".")[0].rpartition(".")
    found = find(unwrap(handle.model), head) if own == LOSS_SCALE else None
    return found is not None and is_fully_frozen(found[0])


def constants(model: nn.Module, names: Iterable[str], rebuild: Callable[[], nn.Module] | None) -> list[str]:
    """The constant buffers among ``names``; a second model is built only where one may be."""
    buffers = dict(unwrap(model).named_buffers(remove_duplicate=False))
    candidates = [name for name in names if name in buffers and _may_be_constant(model, name, buffers[name])]
    if not candidates or rebuild is None:
        return []
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
    """What is not frozen needs no file. Among the names, it keeps what is frozen in part from being named."""
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
            f"FREEZE.ALLOW_RANDOM must name what is frozen, but nothing frozen is in {', '.join(idle)}. "
            "Write names as in MODEL.NOT_TRAIN_IN_MULTI_TASK, or True for everything."
        )


def _count(group: str, names: Collection[str]) -> str:
    inside = sum(name.startswith(group + ".") for name in names)
    return f" ({inside} tensor{'' if inside == 1 else 's'})" if inside else ""
