"""Whether a module runs code of the user: hooks, or a forward set on the instance."""

from __future__ import annotations

from typing import Any

OURS = "pcdet_freeze."


def has_foreign_code(module: Any) -> bool:
    """Whether a call of ``module`` runs a hook or a forward that does not belong to this package."""
    hooks = (
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
    )
    forward = module.__dict__.get("forward")
    return not all(map(is_ours, hooks if forward is None else (*hooks, forward)))


def is_ours(code: Any) -> bool:
    """Whether a function, method or object belongs to this package."""
    return str(getattr(code, "__module__", "")).startswith(OURS)
