"""The hooks of a config: those that a key turns on, and a user's own of the HOOK section."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from pcdet_freeze.config import where
from pcdet_freeze.engine.hooks import freeze
from pcdet_freeze.engine.hooks.base import HOOKS, ConfiguredHook, Hook
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezePlan

__all__ = [
    "freeze",
    "hooks_from_cfg",
    "user_hook_faults",
    "user_hooks",
]  # importing freeze registers its hook


def hooks_from_cfg(
    cfg: Mapping[str, Any],
    model: nn.Module,
    begun: int = 0,
    epochs: int | None = None,
    plan: FreezePlan | None = None,
) -> list[ConfiguredHook]:
    """Return the registered hooks that a key of ``cfg`` turns on for ``model``, each before its companions.

    Args:
        begun: epochs that a resumed run has begun, the current one included.
        epochs: length of the run; None where it is not known yet.
        plan: the freeze plan of ``cfg``, where it was parsed already.
    """
    kinds = [kind for kind in map(HOOKS.get, HOOKS.names()) if issubclass(kind, ConfiguredHook)]
    made = (kind.from_cfg(cfg, model, begun, epochs, plan) for kind in kinds)
    return [one for hook in made if hook is not None for one in (hook, *hook.companions())]


def user_hooks(cfg: Mapping[str, Any]) -> list[Hook]:
    """Create the hooks of the HOOK section, in its order; each class is registered in HOOKS.

    ``HOOK: [{NAME: my_package.my_module.MyHook, EVERY: 10}]`` creates ``MyHook(every=10)``.

    Raises:
        ConfigError: with file and line: a NAME that cannot be imported or is no Hook, unknown or missing
            settings, or an error of the class's ``__init__``.
    """
    return [_create(cfg, number, *_checked(cfg, number)) for number in range(len(cfg.get("HOOK") or []))]


def user_hook_faults(cfg: Mapping[str, Any]) -> list[str]:
    """Every fault of the HOOK section; no hook is created."""
    faults = []
    for number in range(len(cfg.get("HOOK") or [])):
        try:
            _checked(cfg, number)
        except ConfigError as error:
            faults.append(str(error))
    return faults


def _checked(cfg: Mapping[str, Any], number: int) -> tuple[type[Hook], dict[str, Any]]:
    """Class and arguments of entry ``number``."""
    entry = cfg["HOOK"][number]
    kind = _hook_class(cfg, number, entry["NAME"])
    settings = {str(key).lower(): value for key, value in entry.items() if key != "NAME"}
    signature = inspect.signature(kind)
    try:
        signature.bind(**settings)
    except TypeError as error:
        names = ", ".join(name.upper() for name in signature.parameters) or "none"
        raise ConfigError(
            f"{_place(cfg, number)}: the settings of {entry['NAME']} must be the arguments of its __init__ "
            f"in upper case ({names}); {error}"
        ) from error
    return kind, settings


def _hook_class(cfg: Mapping[str, Any], number: int, name: str) -> type[Hook]:
    place, (module, _, attribute) = _place(cfg, number), name.rpartition(".")
    if module:
        kind = _imported(place, name, module, attribute)
    elif name in HOOKS:
        kind = HOOKS.get(name)
    else:
        raise ConfigError(
            f"{place}: NAME must be the import path of a hook, like my_package.my_module.MyHook; got {name!r}"
            " (OpenPCDet's own hooks are not implemented)"
        )
    if issubclass(kind, ConfiguredHook):
        raise ConfigError(
            f"{place}: {name} is a ConfiguredHook, which a key of its own turns on (from_cfg). Remove it "
            "from HOOK, or derive it from Hook"
        )
    if name not in HOOKS:  # only now: a ConfiguredHook in HOOKS is asked by every later training
        HOOKS.register_as(name)(kind)
    return kind


def _imported(place: str, name: str, module: str, attribute: str) -> type[Hook]:
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (Exception, SystemExit) as error:  # importing runs the user's code: a script may end there
        raise ConfigError(
            f"{place}: {name} cannot be imported: {type(error).__name__}: {error}. Install the package, or "
            "add its folder to PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, Hook)):
        raise ConfigError(
            f"{place}: {name} must be a class derived from pcdet_freeze.engine.hooks.base.Hook; got {found!r}"
        )
    return found


def _create(cfg: Mapping[str, Any], number: int, kind: type[Hook], settings: Mapping[str, Any]) -> Hook:
    try:
        return kind(**settings)
    except Exception as error:  # the user's code
        raise ConfigError(
            f"{_place(cfg, number)}: {kind.__name__} refuses its settings: {type(error).__name__}: {error}"
        ) from error


def _place(cfg: Mapping[str, Any], number: int) -> str:
    key = f"HOOK.{number}"
    return f"{where(cfg, key)}: {key}" if where(cfg, key) else key
