"""What slipped is put right before the next forward of the model (H4, H5)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn
from torch._compile import (
    _disable_dynamo,
)  # torch.compiler.disable, which loads the compiler at its first call

from pcdet_freeze.freezing.apply import slipped, take
from pcdet_freeze.freezing.paths import compiled_wrappers, unwrap
from pcdet_freeze.freezing.state import Claim, record_of, state_of, write_record


@_disable_dynamo
def hold_fast(module: nn.Module, _args: Any) -> None:
    """Forward pre-hook of the root: hold again whatever no longer is (a replaced child, ``requires_grad``).

    It is never compiled: a trace would look once and keep the answer. In a compiled model it costs no break
    in the graph, since torch calls hooks outside of it; in a compiled function that calls the model, one.
    """
    put_right(unwrap(module))


def put_right(root: nn.Module) -> list[str]:
    """Do what :func:`hold_fast` does now; returns the tokens of the claims that had slipped."""
    state = state_of(root)
    mended = []
    for claim in list(state.claims.values()) if state is not None else []:
        if slipped(root, claim):
            take(root, _without_released(root, claim))
            mended.append(claim.token)
    return mended


def _without_released(root: nn.Module, claim: Claim) -> Claim:
    """``claim`` less the modules that were let go without this root being asked."""
    for path, module, _ in list(claim.cover.modules(root)):
        record = record_of(module)
        if record is None or claim.token not in record.released:
            continue
        claim = replace(claim, cover=claim.cover.remove(path), eval_cover=claim.eval_cover.remove(path))
        rest = tuple(token for token in record.released if token != claim.token)
        if rest or record.owners:
            write_record(module, replace(record, released=rest))
        else:
            write_record(module, None)
    return claim


def attach(model: nn.Module) -> None:
    """Give the root of ``model`` the hook, once; a ``torch.compile`` wrapper too, where it runs eagerly."""
    for module in (unwrap(model), *compiled_wrappers(model)):
        if hold_fast not in module._forward_pre_hooks.values():
            module.register_forward_pre_hook(hold_fast, prepend=True)


def detach_if_idle(wrapper: nn.Module) -> None:
    """Take the hook off a wrapper whose model has no claim any more."""
    if state_of(unwrap(wrapper)) is None:
        detach(wrapper)


def detach(root: nn.Module) -> None:
    """Take the hook off, also where the handle that put it there belongs to another copy of the model."""
    for key, hook in list(root._forward_pre_hooks.items()):
        if hook is hold_fast:
            del root._forward_pre_hooks[key]
            root._forward_pre_hooks_with_kwargs.pop(key, None)
