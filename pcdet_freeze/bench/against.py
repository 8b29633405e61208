"""The freezing of other packages, on the same model and list (--against)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezePlan, frozen


def _lightning(model: nn.Module, cfg: Any) -> Sequence[Any]:
    """``BaseFinetuning.freeze`` of Lightning, BatchNorm's parameters included."""
    callbacks = _import("lightning", "lightning.pytorch.callbacks")
    modules = [model.get_submodule(name) for name in names_of(model, cfg)]
    callbacks.BaseFinetuning.freeze(modules, train_bn=False)
    return ()


def _timm(model: nn.Module, cfg: Any) -> Sequence[Any]:
    """``timm.utils.model.freeze``, BatchNorm2d's statistics included."""
    utils = _import("timm", "timm.utils.model")
    utils.freeze(model, list(names_of(model, cfg)))
    return ()


AGAINST: dict[str, Callable[[nn.Module, Any], Sequence[Any]]] = {"lightning": _lightning, "timm": _timm}
"""Package -> what it does to a model, given the config: the same list is frozen, as its own users do it."""


def names_of(model: nn.Module, cfg: Any) -> tuple[str, ...]:
    """Paths of what MODEL.NOT_TRAIN_IN_MULTI_TASK names in ``model``."""
    with frozen(model, FreezePlan.from_cfg(cfg)) as handle:
        return handle.names


def check_installed(names: Sequence[str]) -> None:
    """ConfigError that says what to install for those of ``names`` that are other packages."""
    places = {"lightning": "lightning.pytorch.callbacks", "timm": "timm.utils.model"}
    for name in names:
        if name in places:
            _import(name, places[name])


def _import(package: str, module: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # a package may be there and not fit the torch that is
        raise ConfigError(
            f"--against {package} needs the package {package}, but {module} cannot be imported here "
            f"({type(error).__name__}: {error}): pip install {package}, or leave it out"
        ) from error
