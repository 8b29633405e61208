"""pcdet_freeze: train one LiDAR task without touching the others."""

import importlib
from typing import Any

from pcdet_freeze.freezing import (
    Certificate,
    CertificateError,
    FreezeError,
    FreezeHandle,
    FreezePlan,
    freeze,
    frozen,
    is_frozen,
    set_bn_eval,
    set_bn_to_eval,
    unfreeze,
)

__version__ = "0.2.0"

_LAZY = {
    "TrainResult": "pcdet_freeze.engine.train_api",
    "build_network": "pcdet_freeze.models",
    "cfg_from_yaml_file": "pcdet_freeze.config",
    "evaluate": "pcdet_freeze.engine.train_api",
    "train": "pcdet_freeze.engine.train_api",
}
"""public name -> module that is imported when the name is first used"""


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_LAZY[name]), name)


__all__ = [
    "Certificate",
    "CertificateError",
    "FreezeError",
    "FreezeHandle",
    "FreezePlan",
    "freeze",
    "frozen",
    "is_frozen",
    "set_bn_eval",
    "set_bn_to_eval",
    "unfreeze",
]
