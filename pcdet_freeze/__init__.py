"""pcdet_freeze: train one LiDAR task without touching the others.

The exceptions are imported with the package. All other names are imported when they are first used (PEP 562):
the plugin for OpenPCDet needs no trainer, and a command handles Ctrl-C while torch is imported.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pcdet_freeze.errors import (
    CertificateError,
    CheckpointError,
    ConfigError,
    DataError,
    FreezeError,
    IntegrationError,
    OutputError,
    PCDetFreezeError,
    TrainingError,
)

if TYPE_CHECKING:
    from pcdet_freeze.config import cfg_from_yaml_file
    from pcdet_freeze.engine.train_api import TrainResult, evaluate, train
    from pcdet_freeze.freezing import (
        Certificate,
        FreezeHandle,
        FreezePlan,
        compare_states,
        copying_frozen,
        freeze,
        frozen,
        is_frozen,
        set_bn_eval,
        set_bn_to_eval,
        unfreeze,
    )
    from pcdet_freeze.models import build_network

__version__ = "0.6.0"

__all__ = [
    "Certificate",
    "CertificateError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "FreezeError",
    "FreezeHandle",
    "FreezePlan",
    "IntegrationError",
    "OutputError",
    "PCDetFreezeError",
    "TrainResult",
    "TrainingError",
    "build_network",
    "cfg_from_yaml_file",
    "compare_states",
    "copying_frozen",
    "evaluate",
    "freeze",
    "frozen",
    "is_frozen",
    "set_bn_eval",
    "set_bn_to_eval",
    "train",
    "unfreeze",
]

_SOURCES = {
    "config": ("cfg_from_yaml_file",),
    "engine.train_api": ("TrainResult", "evaluate", "train"),
    "freezing": (
        "Certificate",
        "FreezeHandle",
        "FreezePlan",
        "compare_states",
        "copying_frozen",
        "freeze",
        "frozen",
        "is_frozen",
        "set_bn_eval",
        "set_bn_to_eval",
        "unfreeze",
    ),
    "models": ("build_network",),
}
_LAZY = {name: f"pcdet_freeze.{module}" for module, names in _SOURCES.items() for name in names}
"""name -> module that it is imported from when it is first used"""


def __getattr__(name: str) -> Any:
    if name == "freezing":  # the package, without an import of its own
        return import_module("pcdet_freeze.freezing")
    if name not in _LAZY:
        raise AttributeError(f"module 'pcdet_freeze' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
