"""Freezing by other packages, on the same model and list (``--against``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from torch import nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezePlan, frozen


def _lightning(model: nn.Module, cfg: Any) -> Sequence[Any]:
    """``BaseFinetuning.freeze`` of Lightning, BatchNorm parameters included."""
    callbacks = _import("lightning", "lightning.pytorch.callbacks")
    modules = [model.get_submodule(name) for name in names_of(model, cfg)]
    callbacks.BaseFinetuning.freeze(modules, train_bn=False)
    return ()


def _timm(model: nn.Module, cfg: Any) -> Sequence[Any]:
    """``timm.utils.model.freeze``, BatchNorm2d statistics included."""
    utils = _import("timm", "timm.utils.model")
    utils.freeze(model, list(names_of(model, cfg)))
    return ()


AGAINST: dict[str, Callable[[nn.Module, Any], Sequence[Any]]] = {"lightning": _lightning, "timm": _timm}
"""package -> a function that freezes the list of a config in a model by the package's own call"""


def names_of(model: nn.Module, cfg: Any) -> tuple[str, ...]:
    """Paths of the modules that MODEL.NOT_TRAIN_IN_MULTI_TASK names in ``model``."""
    with frozen(model, FreezePlan.from_cfg(cfg)) as handle:
        return handle.names


def check_installed(names: Sequence[str]) -> None:
    """Raise ConfigError, which says what to install, if a package among ``names`` cannot be imported."""
    places = {"lightning": "lightning.pytorch.callbacks", "timm": "timm.utils.model"}
    for name in names:
        if name in places:
            _import(name, places[name])


def _import(package: str, module: str) -> Any:
    try:
        return import_module(module)
    except Exception as error:  # it may be installed, but for another torch
        raise ConfigError(
            f"--against {package} needs the package {package}, but {module} cannot be imported "
            f"({type(error).__name__}: {error}): pip install {package}, or remove it from --against"
        ) from error
