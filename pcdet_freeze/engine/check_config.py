"""The whole config, checked before any data is read: every fault of every section in one error."""

from __future__ import annotations

from typing import Any

from pcdet_freeze.config.cfg import cfg_faults
from pcdet_freeze.datasets import data_faults
from pcdet_freeze.engine.hooks.from_config import user_hook_faults
from pcdet_freeze.engine.optim.settings import SECTIONS, optimization_faults
from pcdet_freeze.engine.testing.scoring import evaluation_faults
from pcdet_freeze.errors import ConfigError, FreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.models import model_faults
from pcdet_freeze.utils.settings.faults import raise_faults


def check_config(cfg: Any, *, training: bool = True, data: bool = True) -> FreezePlan:
    """Check all sections of ``cfg``, and return the freeze plan in it.

    Args:
        training: also check what only a training reads: OPTIMIZATION as a whole.
        data: also check DATA_CONFIG; not where random frames may stand in for a data set.

    Raises:
        ConfigError: every fault, each with file and line; FreezeError where all are of the freeze's keys.
    """
    faults = cfg_faults(cfg, SECTIONS)
    if "DATA_CONFIG" in cfg and data:
        faults += data_faults(cfg.DATA_CONFIG)
    faults += evaluation_faults(cfg)
    if "MODEL" in cfg:
        # where CLASS_NAMES is wrong itself, cfg_faults says so
        faults += model_faults(cfg.MODEL, None if faults else cfg.CLASS_NAMES)
    if "OPTIMIZATION" in cfg and training:
        faults += optimization_faults(cfg.OPTIMIZATION)
    if training and not faults:
        faults += user_hook_faults(cfg)
    plan, freeze_faults = FreezePlan.read(cfg)
    freeze_faults += plan.openpcdet_only()
    raise_faults([*faults, *freeze_faults], cfg, ConfigError if faults else FreezeError)
    return plan
