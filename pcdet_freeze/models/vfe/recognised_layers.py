"""Which layers of a pillar encoder may run on rows of points in place of padded pillars."""

from __future__ import annotations

from typing import Any

from torch import nn

from pcdet_freeze.freezing.eval_lock import base_class

OURS = "pcdet_freeze."
NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)


def is_recognised(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``layer`` is a ``kind`` of Linear and BatchNorm1d (or SyncBatchNorm) as they were built.

    Not where a part is of another class (a subclass, a parametrization, a wrapper), or has a hook or a
    forward of the user, which may depend on the shape. Hooks and forwards of this package do not.
    """
    linear, norm = layer._modules.get("linear"), layer._modules.get("norm")
    parts = [layer, linear] if norm is None else [layer, linear, norm]
    return (
        len(layer._modules) == len(parts) - 1
        and base_class(layer) is kind
        and type(linear) is nn.Linear
        and (norm is None or base_class(norm) in NORMS)
        and not any(map(has_foreign_code, parts))
    )


def has_foreign_code(module: Any) -> bool:
    """Whether a call of ``module`` runs a hook or a forward that does not belong to this package."""
    hooks = (
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    )
    forward = module.__dict__.get("forward")
    return not all(map(_is_ours, hooks if forward is None else (*hooks, forward)))


def _is_ours(code: Any) -> bool:
    return str(getattr(code, "__module__", "")).startswith(OURS)
