"""Words of a config for completion: its keys, their values, its modules; read from YAML without torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pcdet_freeze.config import load_cfg
from pcdet_freeze.errors import PCDetFreezeError

LIST = "MODEL.NOT_TRAIN_IN_MULTI_TASK"
FREEZE_KEYS = (
    "PARAMETERS", "EVAL", "SHARED", "ALLOW_RANDOM", "IGNORE", "TRAIN_DROPPED", "FUSE", "SKIP_EMPTY",
    "PREFIX_DTYPE", "CHANNELS_LAST", "COMPILE", "CACHE", "LR_SCALE", "SCHEDULE",
)  # fmt: skip
"""keys of MODEL.FREEZE, which a config seldom has"""
MODULES = {
    "VFE": ("vfe",),
    "BACKBONE_3D": ("backbone_3d",),
    "MAP_TO_BEV": ("map_to_bev_module",),
    "BACKBONE_2D": ("backbone_2d", "backbone_2d.blocks", "backbone_2d.deblocks"),
    "DENSE_HEAD": ("dense_head",),
    "SEGMENT_HEAD": ("segment_head",),
    "LANE_HEAD": ("lane_head",),
    "POINT_HEAD": ("point_head",),
    "ROI_HEAD": ("roi_head",),
}
"""section of MODEL -> modules that a freeze list can name"""


def entries_of(cfg_file: str | None) -> list[str]:
    """Entries that a freeze list of the config can have: its modules, and what its own list names.

    Without a config that can be read: the modules of all models.
    """
    model = _read(cfg_file).get("MODEL") or {}
    if not model:
        return [module for modules in MODULES.values() for module in modules]
    own = [module for section, modules in MODULES.items() if section in model for module in modules]
    heads = [name.lower() for name in _names(model.get("DENSE_HEADS"))]
    return list(dict.fromkeys([*own, *heads, *_names(model.get("NOT_TRAIN_IN_MULTI_TASK"))]))


def _names(value: object) -> list[str]:
    """The strings of a list, or the keys of a section; a config that is being written may have others."""
    return [name for name in value if isinstance(name, str)] if isinstance(value, (list, Mapping)) else []


def keys_of(cfg_file: str | None) -> list[str]:
    """Dotted keys of the config, sections included, and those of MODEL.FREEZE."""
    cfg = _read(cfg_file)
    freeze = [LIST, *(f"MODEL.FREEZE.{key}" for key in FREEZE_KEYS)]
    return list(dict.fromkeys([*_keys(cfg), *(freeze if "MODEL" in cfg or not cfg else [])]))


def _keys(section: Mapping[str, Any], above: str = "") -> Iterator[str]:
    for key, value in section.items():
        yield f"{above}{key}"
        if isinstance(value, Mapping):
            yield from _keys(value, f"{above}{key}.")


def values_of(cfg_file: str | None, key: str) -> list[str]:
    """Entries of the freeze list, or ``True`` and ``False``, or the present value of a key."""
    if key == LIST:
        return entries_of(cfg_file)
    value: Any = _read(cfg_file)
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, bool):
        return ["True", "False"]
    return [str(value)] if isinstance(value, (int, float, str)) else []


def _read(cfg_file: str | None) -> Mapping[str, Any]:
    try:
        return load_cfg(cfg_file) if cfg_file else {}
    except PCDetFreezeError:
        return {}
