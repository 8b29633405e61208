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
    FreezeRequest,
    FreezeState,
    ModuleState,
    Owner,
    get_freeze_state,
    get_module_state,
    set_module_state,
)


@dataclass(frozen=True)
class TargetModule:
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


def target_modules(root: nn.Module, request: FreezeRequest) -> Iterator[TargetModule]:
    """Every module that ``claim`` reaches in ``root`` now, parents first."""
    everything = request.plan.parameters
    for path, module, parent in request.module_set.modules(root):
        params = tuple(name for name, p in module._parameters.items() if p is not None) if everything else ()
        mode = locks_mode(request, path, module, parent)
        yield TargetModule(path, module, parent, params, mode, everything)
    for path, name in request.tied:
        found = find(root, path)
        if found is not None and found[0]._parameters.get(name) is not None:
            yield TargetModule(path, *found, (name,), False, False)
    for path in request.users:
        found = find(root, path)
        if found is not None:
            yield TargetModule(path, *found, (), True, False)


def locks_mode(request: FreezeRequest, path: str, module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether ``claim`` holds the mode of this module: by its type, or because FREEZE.EVAL names it."""
    if request.eval_set and request.eval_set.holds(path):
        return True
    return layer_types.is_recurrent(module) or layer_types.needs_eval_lock(module, parent)


def apply_request(root: nn.Module, request: FreezeRequest) -> None:
    """Freeze all that ``claim`` covers. Taking again puts right what slipped.

    Raises FreezeError, before anything is changed, for a module that cannot be frozen as it is.
    """
    state = get_freeze_state(root) or FreezeState()
    before = requires_grad_before(root)
    everyone = list(target_modules(root, request))
    lazy = [unusable(target.path, target.module) for target in everyone]
    if any(lazy):
        raise FreezeError("\n".join(fault for fault in lazy if fault))
    planned = [(target, _plan_record(target, request, state, before)) for target in everyone]
    state.requests[request.token] = request
    root.__dict__[ROOT] = state
    for target, module_state in planned:
        set_module_state(target.module, module_state)
        state.saved_states[target.path] = module_state
        apply_to_module(target.module, module_state)


def unusable(path: str, module: nn.Module) -> str:
    """Why a module cannot be frozen as it is, or an empty string."""
    if layer_types.is_uninitialised(module):
        return f"{path} ({type(module).__name__}) is lazy and not initialised: run one forward, then freeze"
    if layer_types.is_scripted(module):
        return f"{path} is a TorchScript module, which cannot be held: freeze the eager module"
    return ""


def requires_grad_before(root: nn.Module) -> dict[int, bool]:
    """``requires_grad`` before freezing, by id, of all parameters below ``root`` that are frozen already."""
    found: dict[int, bool] = {}
    for module in root.modules():
        module_state = get_module_state(module)
        for name, value in module_state.grads if module_state is not None else ():
            for parameter in _now_called(module, name):
                found.setdefault(id(parameter), value)
    return found


def _now_called(module: nn.Module, name: str) -> list[nn.Parameter]:
    """The parameter ``name`` of ``module``, also where a parametrization that came later has moved it."""
    holder = module._modules.get("parametrizations")
    moved = None if holder is None else holder._modules.get(name)
    now = [module._parameters.get(name)] if moved is None else moved._parameters.values()
    return [parameter for parameter in now if parameter is not None]


def _plan_record(
    target: TargetModule, request: FreezeRequest, state: FreezeState, before: dict[int, bool]
) -> ModuleState:
    """The record that the member shall have; originals that are known are never overwritten."""
    own = get_module_state(target.module)
    old = own or replace(state.saved_states.get(target.path, ModuleState()), owners=(), released=())
    grads = dict(old.grads)
    for name in target.params:
        parameter = target.module._parameters[name]
        assert parameter is not None
        if own is None and parameter.requires_grad:
            grads[name] = True
        elif name not in grads:
            grads[name] = before.get(id(parameter), parameter.requires_grad)
    earlier = next((owner for owner in old.owners if owner.token == request.token), None)
    names = dict.fromkeys((*(earlier.params if earlier else ()), *target.params))
    mode = target.mode or bool(earlier and earlier.mode)
    everything = target.everything or bool(earlier and earlier.everything)
    owner = Owner(request.token, tuple(names), mode, everything)
    owners = (*(o for o in old.owners if o.token != request.token), owner)
    module_state = replace(old, owners=owners, grads=tuple(grads.items()))
    return _with_saved_mode(module_state, target) if target.mode else module_state


def _with_saved_mode(module_state: ModuleState, target: TargetModule) -> ModuleState:
    if layer_types.is_recurrent(target.module):
        known = module_state.dropout is not None
        return module_state if known else replace(module_state, dropout=target.module.__dict__["dropout"])
    if module_state.training is not None:
        return module_state
    flag = eval_lock.requested_mode(target.module)
    parent_flag = flag if target.parent is None else eval_lock.requested_mode(target.parent)
    return replace(module_state, training=flag, apart=flag != parent_flag)


def apply_to_module(module: nn.Module, module_state: ModuleState) -> None:
    """Bring ``module`` into the state that its record asks for."""
    for name, _ in module_state.grads:
        parameter = module._parameters.get(name)
        if isinstance(parameter, nn.Parameter):  # torch.func.functional_call puts plain tensors here
            parameter.requires_grad_(False)
            parameter.grad = None
    if module_state.mode and layer_types.is_recurrent(module):
        module.__dict__["dropout"] = 0.0
    elif module_state.mode:
        eval_lock.lock(module)


def release(root: nn.Module, tokens: frozenset[str] | None, only: frozenset[int] | None = None) -> None:
    """Let go of what the freezes ``tokens`` (None: all) own below ``root``, parents first.

    Args:
        only: ids of the modules to release; None releases everywhere.
    """
    touched: list[tuple[nn.Module, nn.Module | None, ModuleState, ModuleState]] = []
    seen: set[int] = set()
    for _, module, parent in walk(root):
        module_state = get_module_state(module)
        if module_state is None or id(module) in seen or (only is not None and id(module) not in only):
            continue
        seen.add(id(module))
        after = module_state.without(tokens)
        if after.owners != module_state.owners:
            kept = after.params
            after = replace(after, grads=tuple((name, v) for name, v in module_state.grads if name in kept))
            set_module_state(module, after)
            touched.append((module, parent, module_state, after))
    still_frozen = set(requires_grad_before(root))
    for module, parent, module_state, after in touched:
        _restore(module, parent, module_state, after, still_frozen)


def _restore(
    module: nn.Module,
    parent: nn.Module | None,
    module_state: ModuleState,
    after: ModuleState,
    still_frozen: set[int],
) -> None:
    kept = after.params
    for name, value in module_state.grads:
        parameter = module._parameters.get(name)
        if name not in kept and parameter is not None and id(parameter) not in still_frozen:
            parameter.requires_grad_(value)
    if module_state.mode and not after.mode:
        _restore_mode(module, parent, module_state)
        after = replace(after, training=None, apart=False, dropout=None)
    if after.owners or after.released:
        set_module_state(module, after)
    else:
        set_module_state(module, None)


def _restore_mode(module: nn.Module, parent: nn.Module | None, module_state: ModuleState) -> None:
    if module_state.dropout is not None:
        module.__dict__["dropout"] = module_state.dropout
    if module_state.training is None:
        return
    mode = eval_lock.requested_mode(module) if parent is None else eval_lock.requested_mode(parent)
    eval_lock.unlock(module, module_state.training if module_state.apart else mode)


def parameters_to_unfreeze(
    root: nn.Module, tokens: frozenset[str] | None, only: frozenset[int] | None = None
) -> list[nn.Parameter]:
    """The parameters that :func:`release` with these arguments would set to ``requires_grad=True``."""
    found = []
    for module in root.modules():
        module_state = get_module_state(module)
        if module_state is None or (only is not None and id(module) not in only):
            continue
        kept = module_state.without(tokens).params
        found += [
            module._parameters.get(name) for name, value in module_state.grads if value and name not in kept
        ]
    return [parameter for parameter in dict.fromkeys(found) if parameter is not None]


def parameters_to_change(root: nn.Module, request: FreezeRequest) -> list[nn.Parameter]:
    """The parameters whose ``requires_grad`` taking ``claim`` would change."""
    owned = (m.module._parameters[name] for m in target_modules(root, request) for name in m.params)
    return [p for p in dict.fromkeys(owned) if p is not None and p.requires_grad]


def needs_reapply(root: nn.Module, request: FreezeRequest) -> bool:
    """Whether anything that ``claim`` covers is not as it left it."""
    for path, module, parent in request.module_set.modules(root):
        module_state = get_module_state(module)
        if (
            module_state is None
            or request.token not in module_state.tokens
            or _module_needs_reapply(module, module_state)
        ):
            return True
        if request.plan.parameters and _unrecorded(module, module_state):
            return True
        if not module_state.mode and module._forward_pre_hooks and locks_mode(request, path, module, parent):
            return True
    return any(
        _shared_needs_reapply(root, path) for path in (*request.users, *(path for path, _ in request.tied))
    )


def _shared_needs_reapply(root: nn.Module, path: str) -> bool:
    found = find(root, path)
    if found is None:
        return False
    module_state = get_module_state(found[0])
    return module_state is None or _module_needs_reapply(found[0], module_state)


def _unrecorded(module: nn.Module, module_state: ModuleState) -> bool:
    """Whether ``module`` got a parameter after it was frozen."""
    if len(module_state.grads) >= len(module._parameters):
        return False
    names = {name for name, _ in module_state.grads}
    return any(p is not None and name not in names for name, p in module._parameters.items())


def _module_needs_reapply(module: nn.Module, module_state: ModuleState) -> bool:
    for name, _ in module_state.grads:
        parameter = module._parameters.get(name)
        if parameter is None or not (parameter.requires_grad or parameter.grad is not None):
            continue
        if isinstance(parameter, nn.Parameter):
            return True
    if module_state.mode and module_state.dropout is not None:
        return bool(module.__dict__["dropout"] != 0)
    return module_state.mode and not eval_lock.is_locked(module)


def frozen_parameters(root: nn.Module, request: FreezeRequest) -> list[torch.nn.Parameter]:
    """Every parameter that ``claim`` freezes, once."""
    owned = (m.module._parameters[name] for m in target_modules(root, request) for name in m.params)
    return [p for p in dict.fromkeys(owned) if p is not None]
