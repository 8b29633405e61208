"""OPTIMIZATION, checked before any data is read: what is missing, out of range or unknown, all at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pcdet_freeze.config.schema import OptimizationSettings
from pcdet_freeze.engine.optim.optimizer import OPTIMIZERS
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.names import did_you_mean
from pcdet_freeze.utils.settings.sections import read_section

SECTIONS = ("CLASS_NAMES", "DATA_CONFIG", "MODEL", "OPTIMIZATION")
"""sections of a config of a training or an evaluation"""


def check_optimization(cfg: Mapping[str, Any]) -> None:
    """Raise ConfigError with every fault of ``cfg.OPTIMIZATION``."""
    raise_faults(optimization_faults(cfg))


def optimization_faults(cfg: Mapping[str, Any]) -> list[str]:
    """What is wrong with ``cfg.OPTIMIZATION``; the optimizer must be a registered one."""
    _, faults = read_section(OptimizationSettings, cfg, "OPTIMIZATION")
    name, known = cfg.get("OPTIMIZER") if isinstance(cfg, Mapping) else None, OPTIMIZERS.names()
    if isinstance(name, str) and name not in known:
        rule = f"one of {', '.join(known)}"
        faults.append(f"OPTIMIZATION.OPTIMIZER must be {rule}; got {name!r}{did_you_mean(name, known)}")
    return faults
