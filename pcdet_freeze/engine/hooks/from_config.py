"""The hooks that a config turns on: every registered one, for importing them here is what registers them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pcdet_freeze.engine.hooks import freeze
from pcdet_freeze.engine.hooks.base import HOOKS, ConfiguredHook
from pcdet_freeze.freezing import FreezePlan

__all__ = ["freeze", "hooks_from_cfg"]


def hooks_from_cfg(
    cfg: Mapping[str, Any],
    model: nn.Module,
    begun: int = 0,
    epochs: int | None = None,
    plan: FreezePlan | None = None,
) -> list[ConfiguredHook]:
    """The registered hooks that ``cfg`` turns on, made for ``model``, each before its companions.

    A run that goes on says how many epochs it has ``begun``, the one included that it is in the middle of.
    ``epochs`` is its length, where that is known, ``plan`` the freeze plan of ``cfg``, where it is parsed.
    """
    made = (HOOKS.get(name).from_cfg(cfg, model, begun, epochs, plan) for name in HOOKS.names())
    return [one for hook in made if hook is not None for one in (hook, *hook.companions())]
