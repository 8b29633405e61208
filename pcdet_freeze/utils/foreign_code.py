"""What a call of a module runs beside the forward of its class: hooks, or a forward set on the instance."""

from __future__ import annotations

from typing import Any

OURS = "pcdet_freeze."


def added_code(module: Any) -> tuple[Any, ...]:
    """Hooks of ``module``, and the forward that is set on it."""
    forward = module.__dict__.get("forward")
    return (
        *module._forward_hooks.values(),
        *module._forward_pre_hooks.values(),
        *module._backward_hooks.values(),
        *module._backward_pre_hooks.values(),
        *(() if forward is None else (forward,)),
    )


def has_hooks(module: Any) -> bool:
    """Whether a call of ``module`` runs hooks or a forward set on the instance."""
    return bool(added_code(module))


def has_hooks_inside(module: Any) -> bool:
    """:func:`has_hooks` of ``module`` or any module in it."""
    return any(map(has_hooks, module.modules()))


def has_foreign_code(module: Any) -> bool:
    """:func:`has_hooks`, not counting what belongs to this package."""
    return not all(map(is_ours, added_code(module)))


def is_ours(code: Any) -> bool:
    """Whether a function, method or object belongs to this package."""
    return str(getattr(code, "__module__", "")).startswith(OURS)
