"""What slipped is put right before the next forward of the model (H4, H5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch._compile import (
    _disable_dynamo,
)  # torch.compiler.disable, which loads the compiler at its first call

from pcdet_freeze.freezing.apply import apply_request, needs_reapply
from pcdet_freeze.freezing.paths import compiled_wrappers, unwrap
from pcdet_freeze.freezing.state import FreezeRequest, get_freeze_state, get_module_state, set_module_state


@_disable_dynamo
def reapply_pre_hook(module: nn.Module, _args: Any) -> None:
    """Forward pre-hook of the root: hold again whatever no longer is (a replaced child, ``requires_grad``).

    It is never compiled: a trace would look once and keep the answer. In a compiled model it costs no break
    in the graph, since torch calls hooks outside of it; in a compiled function that calls the model, one.
    """
    reapply(unwrap(module))


def reapply(root: nn.Module) -> list[str]:
    """Do what :func:`reapply_pre_hook` does now; returns the tokens of the claims that had slipped."""
    state = get_freeze_state(root)
    mended = []
    for request in list(state.requests.values()) if state is not None else []:
        if needs_reapply(root, request):
            apply_request(root, _without_released(root, request))
            mended.append(request.token)
    return mended


def _without_released(root: nn.Module, request: FreezeRequest) -> FreezeRequest:
    """``claim`` less the modules that were let go without this root being asked."""
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


def attach(model: nn.Module) -> None:
    """Give the root of ``model`` the hook, once; a ``torch.compile`` wrapper too, where it runs eagerly."""
    for module in (unwrap(model), *compiled_wrappers(model)):
        if reapply_pre_hook not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(reapply_pre_hook, prepend=True)


def detach_if_idle(wrapper: nn.Module) -> None:
    """Take the hook off a wrapper whose model has no claim any more."""
    if get_freeze_state(unwrap(wrapper)) is None:
        detach(wrapper)


def detach(root: nn.Module) -> None:
    """Take the hook off, also where the handle that put it there belongs to another copy of the model."""
    for key, hook in list(root._forward_pre_hooks.items()):
        if hook is reapply_pre_hook:
            del root._forward_pre_hooks[key]
            root._forward_pre_hooks_with_kwargs.pop(key, None)
