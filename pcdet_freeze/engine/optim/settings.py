"""OPTIMIZATION, checked before any data is read: what is missing, out of range or unknown, all at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pcdet_freeze.engine.optim.optimizer import OPTIMIZERS
from pcdet_freeze.errors import ConfigError

SECTIONS = ("CLASS_NAMES", "DATA_CONFIG", "MODEL", "OPTIMIZATION")
"""what a config of a training or an evaluation holds"""
ALWAYS = ("BATCH_SIZE_PER_GPU", "NUM_EPOCHS", "OPTIMIZER", "LR", "WEIGHT_DECAY")
STEPS = ("DECAY_STEP_LIST", "LR_DECAY", "LR_CLIP")
NEEDED = {
    "adam_onecycle": (*ALWAYS, "MOMS", "PCT_START", "DIV_FACTOR"),
    "adam": (*ALWAYS, *STEPS),
    "sgd": (*ALWAYS, *STEPS, "MOMENTUM"),
}
OPTIONAL = ("LR_WARMUP", "WARMUP_EPOCH", "GRAD_NORM_CLIP", "USE_AMP", "MEASURE_SAVINGS", "TASK_GRADIENTS")

Rule = tuple[str, Callable[[Any], bool]]
_ABOVE_0: Rule = ("a number above 0", lambda value: _number(value) and value > 0)
_FROM_0: Rule = ("a number, 0 or more", lambda value: _number(value) and value >= 0)
_PART: Rule = ("a number from 0 to 1", lambda value: _number(value) and 0 <= value <= 1)
_FLAG: Rule = ("True or False", lambda value: isinstance(value, bool))
RULES: dict[str, Rule] = {
    "LR": _ABOVE_0,
    "WEIGHT_DECAY": _FROM_0,
    "MOMENTUM": _PART,
    "PCT_START": _PART,
    "DIV_FACTOR": _ABOVE_0,
    "LR_DECAY": _FROM_0,
    "LR_CLIP": _FROM_0,
    "WARMUP_EPOCH": _FROM_0,
    "LR_WARMUP": _FLAG,
    "USE_AMP": _FLAG,
    "MEASURE_SAVINGS": _FLAG,
    "TASK_GRADIENTS": ("a whole number, 0 or more", lambda value: _FROM_0[1](value) and value == int(value)),
    "MOMS": ("two numbers from 0 to 1", lambda value: _list(value, 2) and all(map(_PART[1], value))),
    "DECAY_STEP_LIST": ("a list of epochs", lambda value: _list(value) and all(map(_FROM_0[1], value))),
}


def check_optimization(cfg: Mapping[str, Any]) -> None:
    """Raise ConfigError with every fault of ``cfg.OPTIMIZATION``."""
    name = cfg.get("OPTIMIZER")
    needed = ALWAYS if name is None else NEEDED.get(name, ALWAYS)
    known = {key for keys in NEEDED.values() for key in keys} | {*OPTIONAL}
    faults = [
        f"OPTIMIZATION must have {key} for {name or 'any optimizer'}" for key in needed if key not in cfg
    ]
    faults += [
        f"OPTIMIZATION.{key} must be {RULES[key][0]}; got {value!r}"
        for key, value in cfg.items()
        if key in RULES and not RULES[key][1](value)
    ]
    unknown = [key for key in cfg if key not in known]
    if unknown:
        listed = f"{', '.join(map(str, unknown))}: remove it, or use one of {', '.join(sorted(known))}"
        faults.append(f"OPTIMIZATION has keys without effect, or not built (yet): {listed}")
    if faults:
        raise ConfigError("\n".join(faults))
    OPTIMIZERS.get(str(name))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _list(value: Any, length: int | None = None) -> bool:
    return isinstance(value, list | tuple) and len(value) == (length or len(value))
