"""Release frozen modules: the exact undo of :mod:`pcdet_freeze.freezing.apply`."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from pcdet_freeze.freezing import eval_lock
from pcdet_freeze.freezing.apply import next_state, requires_grad_before, target_modules
from pcdet_freeze.freezing.entries.paths import walk
from pcdet_freeze.freezing.state import (
    FreezeRequest,
    FreezeState,
    ModuleState,
    get_freeze_state,
    get_module_state,
    set_module_state,
)


def record_replaced(root: nn.Module, request: FreezeRequest) -> None:
    """Give modules and parameters that replaced frozen ones the state that those had.

    Nothing else is changed. :func:`release` needs that state, and no forward may have re-applied the freeze.
    """
    state = get_freeze_state(root) or FreezeState()
    before = requires_grad_before(root)
    for target in list(target_modules(root, request)):
        own = get_module_state(target.module)
        if own is None or request.token not in own.tokens or not own.known.issuperset(target.params):
            set_module_state(target.module, next_state(target, request, state, before))


def release(root: nn.Module, tokens: frozenset[str] | None, only: frozenset[int] | None = None) -> None:
    """Release the modules that the freezes ``tokens`` (None: all) own below ``root``, parents first.

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
    if module_state.eval_locked and not after.eval_locked:
        _restore_mode(module, parent, module_state)
        after = replace(after, training=None, differed_from_parent=False, dropout=None)
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
    eval_lock.unlock(module, module_state.training if module_state.differed_from_parent else mode)


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
