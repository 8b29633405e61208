"""The hooks that a config turns on: every registered one, for importing them here is what registers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pcdet_freeze.engine import freeze_hook
from pcdet_freeze.engine.hooks import HOOKS, ConfiguredHook

__all__ = ["freeze_hook", "hooks_from_cfg"]


def hooks_from_cfg(cfg: Mapping[str, Any], model: nn.Module) -> list[ConfiguredHook]:
    """The registered hooks that ``cfg`` turns on, made for ``model``, each before its companions."""
    made = (HOOKS.get(name).from_cfg(cfg, model) for name in HOOKS.names())
    return [one for hook in made if hook is not None for one in (hook, *hook.companions())]
