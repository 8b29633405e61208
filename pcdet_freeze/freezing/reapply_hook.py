"""Re-apply the freeze before each forward of the model (H4, H5)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any

import torch
from torch import nn
from torch._compile import (
    _disable_dynamo,
)  # torch.compiler.disable, which loads the compiler at its first call
from torch.jit._trace import is_tracing

from pcdet_freeze.freezing.apply import apply_request, needs_reapply
from pcdet_freeze.freezing.entries.paths import compiled_wrappers, unwrap
from pcdet_freeze.freezing.release import record_replaced
from pcdet_freeze.freezing.state import FreezeRequest, get_freeze_state, get_module_state, set_module_state


def _uncompiled(hook: Callable[[nn.Module, Any], None]) -> Callable[[nn.Module, Any], None]:
    """``hook``, which torch.compile is not to compile and torch.jit.trace may call.

    torch 2.2 refuses to call a function with ``_disable_dynamo`` in a trace. Later versions do not; they have
    no ``skip_code``, either.
    """
    uncompiled = _disable_dynamo(hook)
    skip_code = getattr(torch._C._dynamo.eval_frame, "skip_code", None)
    if skip_code is None:
        return uncompiled

    def call(module: nn.Module, args: Any) -> None:
        (hook if is_tracing() else uncompiled)(module, args)

    skip_code(call.__code__)
    return wraps(hook)(call)


@_uncompiled
def reapply_pre_hook(module: nn.Module, _args: Any) -> None:
    """Forward pre-hook of the root: freeze what is no longer frozen (a replaced child, ``requires_grad``).

    It is never compiled: a trace would look once and keep the answer. In a compiled model it causes no graph
    break, since torch calls hooks outside of the graph; in a compiled function that calls the model, one.
    """
    reapply(unwrap(module))


def reapply(root: nn.Module) -> list[str]:
    """Re-apply the freeze now, where it is needed; returns the tokens of the requests applied again."""
    state = get_freeze_state(root)
    applied = []
    for request in list(state.requests.values()) if state is not None else []:
        if needs_reapply(root, request):
            apply_request(root, _without_released(root, request))
            applied.append(request.token)
    return applied


def _without_released(root: nn.Module, request: FreezeRequest) -> FreezeRequest:
    """``request`` without the modules that were unfrozen at a module below ``root``."""
    for path, module, _ in list(request.module_set.modules(root)):
        module_state = get_module_state(module)
        if module_state is None or request.token not in module_state.released:
            continue
        request = replace(
            request, module_set=request.module_set.remove(path), eval_set=request.eval_set.remove(path)
        )
        rest = tuple(token for token in module_state.released if token != request.token)
        if rest or module_state.owners:
            set_module_state(module, replace(module_state, released=rest))
        else:
            set_module_state(module, None)
    return request


def record_replaced_modules(root: nn.Module) -> None:
    """Prepare for a release: modules that replaced frozen ones get the state that those had.

    Covers the requests made at ``root`` and at modules below it.
    """
    for module in list(root.modules()):
        state = get_freeze_state(module)
        if state is None:
            continue
        for token, request in list(state.requests.items()):
            state.requests[token] = _without_released(module, request)
            record_replaced(module, state.requests[token])


def attach(model: nn.Module) -> None:
    """Register the hook once on the root of ``model``, and on eager ``torch.compile`` wrappers."""
    for module in (unwrap(model), *compiled_wrappers(model)):
        if reapply_pre_hook not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(reapply_pre_hook, prepend=True)


def detach_if_idle(wrapper: nn.Module) -> None:
    """Remove the hook from a wrapper whose model has no freeze request any more."""
    if get_freeze_state(unwrap(wrapper)) is None:
        detach(wrapper)


def detach(root: nn.Module) -> None:
    """Remove the hook, also where it was registered by the handle of another copy of the model."""
    for key, hook in list(root._forward_pre_hooks.items()):
        if hook is reapply_pre_hook:
            del root._forward_pre_hooks[key]
            root._forward_pre_hooks_with_kwargs.pop(key, None)
