"""What the config reader knows of a config: top-level keys, and the types of the keys that everybody sets.

Each room checks its own sections; these checks come first because they can name file and line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

TOP_LEVEL_KEYS = (
    "CLASS_NAMES", "DATA_CONFIG", "MODEL", "OPTIMIZATION", "HOOK",
    "ROOT_DIR", "LOCAL_RANK", "TAG", "EXP_GROUP_PATH",
)  # fmt: skip

# keys that --set may add although the YAML does not have them
OPTIONAL_KEYS = (
    "MODEL.NOT_TRAIN_IN_MULTI_TASK", "MODEL.LOSS_WEIGHTS", "MODEL.LEARN_LOSS_WEIGHTS",
    "MODEL.FREEZE.PARAMETERS", "MODEL.FREEZE.EVAL", "MODEL.FREEZE.SHARED", "MODEL.FREEZE.ALLOW_RANDOM",
    "MODEL.FREEZE.IGNORE", "MODEL.FREEZE.FUSE", "MODEL.FREEZE.PREFIX_DTYPE", "MODEL.FREEZE.CHANNELS_LAST",
    "MODEL.FREEZE.COMPILE", "MODEL.FREEZE.CACHE", "MODEL.FREEZE.SCHEDULE",
    "OPTIMIZATION.MEASURE_SAVINGS", "OPTIMIZATION.TASK_GRADIENTS", "HOOK",
)  # fmt: skip
LIST_OF_NAMES = ("MODEL.NOT_TRAIN_IN_MULTI_TASK", "MODEL.FREEZE.EVAL", "MODEL.FREEZE.IGNORE", "CLASS_NAMES")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _numbers(length: int | None) -> Callable[[Any], bool]:
    def test(value: Any) -> bool:
        return isinstance(value, list) and len(value) == (length or len(value)) and all(map(_number, value))

    return test


def _names(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 0 and all(isinstance(v, str) and v for v in value)


def _named(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, Mapping) and _text(v.get("NAME")) for v in value)


def _mapping(value: Any) -> bool:
    return isinstance(value, Mapping)


def _text(value: Any) -> bool:
    return isinstance(value, str)


KEY_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "CLASS_NAMES": ("a list of class names", _names),
    "DATA_CONFIG": ("a mapping", _mapping),
    "DATA_CONFIG.DATASET": ("the NAME of a data set", _text),
    "DATA_CONFIG.DATA_PATH": ("a folder", _text),
    "DATA_CONFIG.POINT_CLOUD_RANGE": ("six numbers [x0, y0, z0, x1, y1, z1]", _numbers(6)),
    "MODEL": ("a mapping", _mapping),
    "MODEL.NAME": ("the NAME of a detector", _text),
    "HOOK": (
        "a list of hooks of your own, [{NAME: my_package.my_module.MyHook, ...}] (OpenPCDet's, such as "
        "DisableAugmentationHook, are not built)",
        lambda value: value is None or _named(value),
    ),
    "OPTIMIZATION": ("a mapping", _mapping),
    "OPTIMIZATION.BATCH_SIZE_PER_GPU": ("a whole number above 0", _count),
    "OPTIMIZATION.NUM_EPOCHS": ("a whole number above 0", _count),
    "OPTIMIZATION.OPTIMIZER": ("the name of an optimizer", _text),
    "OPTIMIZATION.LR": ("a number", _number),
    "OPTIMIZATION.WEIGHT_DECAY": ("a number", _number),
    "OPTIMIZATION.MOMENTUM": ("a number", _number),
    "OPTIMIZATION.MOMS": ("two numbers", _numbers(2)),
    "OPTIMIZATION.PCT_START": ("a number", _number),
    "OPTIMIZATION.DIV_FACTOR": ("a number", _number),
    "OPTIMIZATION.GRAD_NORM_CLIP": ("a number, or null", lambda value: value is None or _number(value)),
    "OPTIMIZATION.DECAY_STEP_LIST": ("a list of numbers", _numbers(None)),
}
