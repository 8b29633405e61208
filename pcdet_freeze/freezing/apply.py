"""Apply a freeze request: change every module that it names, in place."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import eval_lock, layer_types
from pcdet_freeze.freezing.entries.paths import find, join
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

logger = logging.getLogger("pcdet_freeze.freeze")


@dataclass(frozen=True)
class TargetModule:
    """One module of a freeze request, and what the request does to it."""

    path: str
    module: nn.Module
    parent: nn.Module | None
    params: tuple[str, ...]
    """Own parameters to freeze."""
    eval_locked: bool
    """Lock it in eval mode (an RNN: set its dropout to 0)."""
    with_parameters: bool
    """The request names it, with its parameters."""


def target_modules(root: nn.Module, request: FreezeRequest) -> Iterator[TargetModule]:
    """Every module that ``request`` freezes in ``root`` now, parents first."""
    with_parameters = request.plan.parameters
    for path, module, parent in request.module_set.modules(root):
        own = module._parameters.items() if with_parameters else ()
        params = tuple(name for name, parameter in own if parameter is not None)
        locked = locks_mode(request, path, module, parent)
        yield TargetModule(path, module, parent, params, locked, with_parameters)
    for path, name in request.tied:
        found = find(root, path)
        if found is not None and found[0]._parameters.get(name) is not None:
            yield TargetModule(path, *found, (name,), False, False)
    for path in request.users:
        found = find(root, path)
        if found is not None:
            yield TargetModule(path, *found, (), True, False)


def locks_mode(request: FreezeRequest, path: str, module: nn.Module, parent: nn.Module | None) -> bool:
    """Whether ``request`` locks this module in eval mode: for its type, or because FREEZE.EVAL names it."""
    if request.eval_set and request.eval_set.contains(path):
        return True
    return layer_types.is_recurrent(module) or layer_types.needs_eval_lock(module, parent)


def apply_request(root: nn.Module, request: FreezeRequest) -> None:
    """Freeze all that ``request`` names in ``root``, or re-apply it where something is no longer frozen.

    Logs a warning for each parameter that appeared in a frozen module since the request was made.

    Raises FreezeError, before anything is changed, for a module that cannot be frozen as it is.
    """
    state = get_freeze_state(root) or FreezeState()
    targets = list(target_modules(root, request))
    faults = [fault for target in targets if (fault := unusable(target.path, target.module))]
    if faults:
        raise FreezeError("\n".join(faults))
    before = requires_grad_before(root)
    if request.token in state.requests:
        for text in _appeared(targets, state, before):
            logger.warning("%s", text)
    planned = [(target, next_state(target, request, state, before)) for target in targets]
    state.requests[request.token] = request
    root.__dict__[ROOT] = state
    for target, module_state in planned:
        set_module_state(target.module, module_state)
        state.saved_states[target.path] = module_state
        apply_to_module(target.module, module_state)


def _appeared(
    targets: Sequence[TargetModule], state: FreezeState, before: Mapping[int, bool]
) -> Iterator[str]:
    """A warning for each trainable parameter that is frozen now only because of the module it is in."""
    for target in targets:
        for name in target.params:
            parameter = target.module._parameters[name]
            assert parameter is not None
            if parameter.requires_grad and _grad_before(target, name, state, before) is None:
                kept = [
                    join(target.path, child)
                    for child, module in target.module._modules.items()
                    if module is not None and get_module_state(module) is not None
                ]
                entries = ", ".join(repr(entry) for entry in (f"!{target.path}", *kept))
                yield (
                    f"{join(target.path, name)} was added to a frozen module after freeze(), and is frozen "
                    f"too. To train it, add it before freeze() and append {entries} to the freeze list "
                    f"(MODEL.NOT_TRAIN_IN_MULTI_TASK), or call unfreeze(model, [{target.path!r}])."
                )


def unusable(path: str, module: nn.Module) -> str:
    """Why a module cannot be frozen as it is, or an empty string."""
    if layer_types.is_uninitialised(module):
        return f"{path} ({type(module).__name__}) is lazy and not initialised: run one forward, then freeze"
    if layer_types.is_scripted(module):
        return f"{path} is a TorchScript module, which cannot be frozen: freeze the eager module"
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
    """The parameter ``name`` of ``module``, also where torch has moved it since.

    A parametrization moves it to a child; pruning and the older ``spectral_norm`` to ``<name>_orig``, and
    back when they are removed.
    """
    lists = module._modules.get("parametrizations")
    moved = None if lists is None else lists._modules.get(name)
    if moved is not None:
        now = list(moved._parameters.values())
    elif module._parameters.get(name) is not None:
        now = [module._parameters[name]]
    else:
        now = [module._parameters.get(key) for key in (f"{name}_orig", name.removesuffix("_orig"))]
    return [parameter for parameter in now if parameter is not None]


def _grad_before(
    target: TargetModule, name: str, state: FreezeState, before: Mapping[int, bool]
) -> bool | None:
    """``requires_grad`` of a parameter before it was frozen; None where it was never frozen.

    A parameter is known by its module, by the path of a module that was replaced, by identity where it is
    tied or moved, and by the name of a parametrization that was removed.
    """
    parameter = target.module._parameters[name]
    own = get_module_state(target.module)
    for known in (own, state.saved_states.get(target.path)):
        grads = dict(known.grads) if known is not None else {}
        if name in grads:
            return grads[name]
    if id(parameter) in before:
        return before[id(parameter)]
    removed = state.saved_states.get(f"{target.path}.parametrizations.{name}")
    return any(value for _, value in removed.grads) if removed is not None and removed.grads else None


def next_state(
    target: TargetModule, request: FreezeRequest, state: FreezeState, before: Mapping[int, bool]
) -> ModuleState:
    """The state that the module of ``target`` gets; originals that are known are never overwritten."""
    own = get_module_state(target.module)
    old = own or replace(state.saved_states.get(target.path, ModuleState()), owners=(), released=())
    grads = dict(old.grads)
    for name in target.params:
        parameter = target.module._parameters[name]
        assert parameter is not None
        if own is None and parameter.requires_grad:
            grads[name] = True
        elif name not in grads:
            value = _grad_before(target, name, state, before)
            grads[name] = parameter.requires_grad if value is None else value
    earlier = next((owner for owner in old.owners if owner.token == request.token), None)
    names = dict.fromkeys((*(earlier.params if earlier else ()), *target.params))
    eval_locked = target.eval_locked or bool(earlier and earlier.eval_locked)
    with_parameters = target.with_parameters or bool(earlier and earlier.with_parameters)
    owner = Owner(request.token, tuple(names), eval_locked, with_parameters)
    owners = (*(o for o in old.owners if o.token != request.token), owner)
    module_state = replace(old, owners=owners, grads=tuple(grads.items()))
    return _with_saved_mode(module_state, target) if target.eval_locked else module_state


def _with_saved_mode(module_state: ModuleState, target: TargetModule) -> ModuleState:
    if layer_types.is_recurrent(target.module):
        known = module_state.dropout is not None
        return module_state if known else replace(module_state, dropout=target.module.__dict__["dropout"])
    if module_state.training is not None:
        return module_state
    flag = eval_lock.requested_mode(target.module)
    parent_flag = flag if target.parent is None else eval_lock.requested_mode(target.parent)
    return replace(module_state, training=flag, differed_from_parent=flag != parent_flag)


def apply_to_module(module: nn.Module, module_state: ModuleState) -> None:
    """Bring ``module`` into the state that ``module_state`` describes."""
    for name, _ in module_state.grads:
        parameter = module._parameters.get(name)
        if isinstance(parameter, nn.Parameter):  # torch.func.functional_call puts plain tensors here
            parameter.requires_grad_(False)
            parameter.grad = None
    if module_state.eval_locked and layer_types.is_recurrent(module):
        module.__dict__["dropout"] = 0.0
    elif module_state.eval_locked:
        eval_lock.lock(module)


def parameters_to_change(root: nn.Module, request: FreezeRequest) -> list[nn.Parameter]:
    """The parameters whose ``requires_grad`` applying ``request`` would change."""
    frozen = (m.module._parameters[name] for m in target_modules(root, request) for name in m.params)
    return [p for p in dict.fromkeys(frozen) if p is not None and p.requires_grad]


def needs_reapply(root: nn.Module, request: FreezeRequest) -> bool:
    """Whether anything that ``request`` froze is no longer as it was left."""
    for path, module, parent in request.module_set.modules(root):
        module_state = get_module_state(module)
        if (
            module_state is None
            or request.token not in module_state.tokens
            or _module_needs_reapply(module, module_state)
        ):
            return True
        if request.plan.parameters and _has_new_parameter(module, module_state):
            return True
        may_lock = not module_state.eval_locked and bool(module._forward_pre_hooks)
        if may_lock and locks_mode(request, path, module, parent):
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


def _has_new_parameter(module: nn.Module, module_state: ModuleState) -> bool:
    """Whether ``module`` got a parameter after it was frozen."""
    known = module_state.known
    if known.issuperset(module._parameters):
        return False
    return any(p is not None and name not in known for name, p in module._parameters.items())


def _module_needs_reapply(module: nn.Module, module_state: ModuleState) -> bool:
    for name, _ in module_state.grads:
        parameter = module._parameters.get(name)
        if parameter is None or not (parameter.requires_grad or parameter.grad is not None):
            continue
        if isinstance(parameter, nn.Parameter):
            return True
    if module_state.eval_locked and module_state.dropout is not None:
        return bool(module.__dict__["dropout"] != 0)
    return module_state.eval_locked and not eval_lock.is_locked(module)


def frozen_parameters(root: nn.Module, request: FreezeRequest) -> list[torch.nn.Parameter]:
    """Every parameter that ``request`` freezes, once."""
    frozen = (m.module._parameters[name] for m in target_modules(root, request) for name in m.params)
    return [p for p in dict.fromkeys(frozen) if p is not None]
