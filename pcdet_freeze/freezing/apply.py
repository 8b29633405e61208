"""Taking and releasing a claim: the in-place change of every module that it covers, and the exact undo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import eval_lock, layer_types
from pcdet_freeze.freezing.paths import find, walk
from pcdet_freeze.freezing.state import (
    ROOT,
    Claim,
    Owner,
    Record,
    RootState,
    record_of,
    state_of,
    write_record,
)


@dataclass(frozen=True)
class Member:
    """One module of a claim, and what the claim wants of it."""

    path: str
    module: nn.Module
    parent: nn.Module | None
    params: tuple[str, ...]
    """Own parameters to freeze."""
    mode: bool
    """Hold it in eval mode (an RNN: set its dropout to 0)."""
    everything: bool
    """The claim names it, with its parameters."""


def members(root: nn.Module, claim: Claim) -> Iterator[Member]:
    """Every module that ``claim`` reaches in ``root`` now, parents first."""
    everything = claim.plan.parameters
    for path, module, parent in claim.cover.modules(root):
        params = tuple(name for name, p in module._parameters.items() if p is not None) if everything else ()
        mode = wants_mode(claim, path, module, parent)
        yield Member(path, module, parent, params, mode, everything)
    for path, name in claim.tied:
        found = find(root, path)
        if found is not None and found[0]._parameters.get(name) is not None:
            yield Member(path, *found, (name,), False, False)
    for path in claim.users:
        found = find(root, path)
        if found is not None:
            yield Member(path, *found, (), True, False)


def wants_mode(claim: Claim, path: str, module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether ``claim`` holds the mode of this module: by its type, or because FREEZE.EVAL names it."""
    if claim.eval_cover and claim.eval_cover.holds(path):
        return True
    return layer_types.is_recurrent(module) or layer_types.must_hold(module, parent)


def take(root: nn.Module, claim: Claim) -> None:
    """Freeze all that ``claim`` covers. Taking again puts right what slipped.

    Raises FreezeError, before anything is changed, for a module that cannot be frozen as it is.
    """
    state = state_of(root) or RootState()
    before = grads_before(root)
    everyone = list(members(root, claim))
    lazy = [unusable(member.path, member.module) for member in everyone]
    if any(lazy):
        raise FreezeError("\n".join(fault for fault in lazy if fault))
    planned = [(member, _plan_record(member, claim, state, before)) for member in everyone]
    state.claims[claim.token] = claim
    root.__dict__[ROOT] = state
    for member, record in planned:
        write_record(member.module, record)
        state.memory[member.path] = record
        enforce(member.module, record)


def unusable(path: str, module: nn.Module) -> str:
    """Why a module cannot be frozen as it is, or an empty string."""
    if layer_types.is_uninitialised(module):
        return f"{path} ({type(module).__name__}) is lazy and not initialised: run one forward, then freeze"
    if layer_types.is_scripted(module):
        return f"{path} is a TorchScript module, which cannot be held: freeze the eager module"
    return ""


def grads_before(root: nn.Module) -> dict[int, bool]:
    """``requires_grad`` before freezing, by id, of all parameters below ``root`` that are frozen already."""
    found: dict[int, bool] = {}
    for module in root.modules():
        record = record_of(module)
        for name, value in record.grads if record is not None else ():
            for parameter in _now_called(module, name):
                found.setdefault(id(parameter), value)
    return found


def _now_called(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameter ``name`` of ``module``, also where a parametrization that came later has moved it."""
    holder = module._modules.get("parametrizations")
    moved = None if holder is None else holder._modules.get(name)
    now = [module._parameters.get(name)] if moved is None else moved._parameters.values()
    return [parameter for parameter in now if parameter is not None]


def _plan_record(member: Member, claim: Claim, state: RootState, before: dict[int, bool]) -> Record:
    """The record that the member shall have; originals that are known are never overwritten."""
    own = record_of(member.module)
    old = own or replace(state.memory.get(member.path, Record()), owners=(), released=())
    grads = dict(old.grads)
    for name in member.params:
        parameter = member.module._parameters[name]
        assert parameter is not None
        if own is None and parameter.requires_grad:
            grads[name] = True
        elif name not in grads:
            grads[name] = before.get(id(parameter), parameter.requires_grad)
    earlier = next((owner for owner in old.owners if owner.token == claim.token), None)
    names = dict.fromkeys((*(earlier.params if earlier else ()), *member.params))
    mode = member.mode or bool(earlier and earlier.mode)
    everything = member.everything or bool(earlier and earlier.everything)
    owner = Owner(claim.token, tuple(names), mode, everything)
    owners = (*(o for o in old.owners if o.token != claim.token), owner)
    record = replace(old, owners=owners, grads=tuple(grads.items()))
    return _with_mode(record, member) if member.mode else record


def _with_mode(record: Record, member: Member) -> Record:
    if layer_types.is_recurrent(member.module):
        known = record.dropout is not None
        return record if known else replace(record, dropout=member.module.__dict__["dropout"])
    if record.training is not None:
        return record
    flag = eval_lock.asked_mode(member.module)
    parent_flag = flag if member.parent is None else eval_lock.asked_mode(member.parent)
    return replace(record, training=flag, apart=flag != parent_flag)


def enforce(module: nn.Module, record: Record) -> None:
    """Bring ``module`` into the state that its record asks for."""
    for name, _ in record.grads:
        parameter = module._parameters.get(name)
        if isinstance(parameter, nn.Parameter):  # torch.func.functional_call puts plain tensors here
            parameter.requires_grad_(False)
            parameter.grad = None
    if record.mode and layer_types.is_recurrent(module):
        module.__dict__["dropout"] = 0.0
    elif record.mode:
        eval_lock.hold(module)


def release(root: nn.Module, tokens: frozenset[str] | None, only: frozenset[int] | None = None) -> None:
    """Let go of what the freezes ``tokens`` (None: all) own below ``root``, parents first.

    Args:
        only: ids of the modules to release; None releases everywhere.
    """
    touched: list[tuple[nn.Module, nn.Module | None, Record, Record]] = []
    seen: set[int] = set()
    for _, module, parent in walk(root):
        record = record_of(module)
        if record is None or id(module) in seen or (only is not None and id(module) not in only):
            continue
        seen.add(id(module))
        after = record.without(tokens)
        if after.owners != record.owners:
            kept = after.params
            after = replace(after, grads=tuple((name, v) for name, v in record.grads if name in kept))
            write_record(module, after)
            touched.append((module, parent, record, after))
    still_frozen = set(grads_before(root))
    for module, parent, record, after in touched:
        _restore(module, parent, record, after, still_frozen)


def _restore(
    module: nn.Module, parent: nn.Module | None, record: Record, after: Record, still_frozen: set[int]
) -> None:
    kept = after.params
    for name, value in record.grads:
        parameter = module._parameters.get(name)
        if name not in kept and parameter is not None and id(parameter) not in still_frozen:
            parameter.requires_grad_(value)
    if record.mode and not after.mode:
        _restore_mode(module, parent, record)
        after = replace(after, training=None, apart=False, dropout=None)
    if after.owners or after.released:
        write_record(module, after)
    else:
        write_record(module, None)


def _restore_mode(module: nn.Module, parent: nn.Module | None, record: Record) -> None:
    if record.dropout is not None:
        module.__dict__["dropout"] = record.dropout
    if record.training is None:
        return
    mode = eval_lock.asked_mode(module) if parent is None else eval_lock.asked_mode(parent)
    eval_lock.let_go(module, record.training if record.apart else mode)


def parameters_to_thaw(
    root: nn.Module, tokens: frozenset[str] | None, only: frozenset[int] | None = None
) -> list[nn.Parameter]:
    """The parameters that :func:`release` with these arguments would set to ``requires_grad=True``."""
    found = []
    for module in root.modules():
        record = record_of(module)
        if record is None or (only is not None and id(module) not in only):
            continue
        kept = record.without(tokens).params
        found += [module._parameters.get(name) for name, value in record.grads if value and name not in kept]
    return [parameter for parameter in dict.fromkeys(found) if parameter is not None]


def parameters_to_change(root: nn.Module, claim: Claim) -> list[nn.Parameter]:
    """The parameters whose ``requires_grad`` taking ``claim`` would change."""
    owned = (m.module._parameters[name] for m in members(root, claim) for name in m.params)
    return [p for p in dict.fromkeys(owned) if p is not None and p.requires_grad]


def slipped(root: nn.Module, claim: Claim) -> bool:
    """Whether anything that ``claim`` covers is not as it left it."""
    for path, module, parent in claim.cover.modules(root):
        record = record_of(module)
        if record is None or claim.token not in record.tokens or _module_slipped(module, record):
            return True
        if claim.plan.parameters and _unrecorded(module, record):
            return True
        if not record.mode and module._forward_pre_hooks and wants_mode(claim, path, module, parent):
            return True
    return any(_extra_slipped(root, path) for path in (*claim.users, *(path for path, _ in claim.tied)))


def _extra_slipped(root: nn.Module, path: str) -> bool:
    found = find(root, path)
    if found is None:
        return False
    record = record_of(found[0])
    return record is None or _module_slipped(found[0], record)


def _unrecorded(module: nn.Module, record: Record) -> bool:
    """Whether ``module`` got a parameter after it was frozen."""
    if len(record.grads) >= len(module._parameters):
        return False
    names = {name for name, _ in record.grads}
    return any(p is not None and name not in names for name, p in module._parameters.items())


def _module_slipped(module: nn.Module, record: Record) -> bool:
    for name, _ in record.grads:
        parameter = module._parameters.get(name)
        if parameter is None or not (parameter.requires_grad or parameter.grad is not None):
            continue
        if isinstance(parameter, nn.Parameter):
            return True
    if record.mode and record.dropout is not None:
        return bool(module.__dict__["dropout"] != 0)
    return record.mode and not eval_lock.is_held(module)


def frozen_parameters(root: nn.Module, claim: Claim) -> list[torch.nn.Parameter]:
    """Every parameter that ``claim`` freezes, once."""
    owned = (m.module._parameters[name] for m in members(root, claim) for name in m.params)
    return [p for p in dict.fromkeys(owned) if p is not None]
