"""Mapping from sections of the model config to modules, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models import registry
from pcdet_freeze.models.settings import read_settings
from pcdet_freeze.registry import Registry

OTHER_KEYS = (
    "NAME",
    "POST_PROCESSING",
    "NOT_TRAIN_IN_MULTI_TASK",
    "FREEZE",
    "LOSS_WEIGHTS",
    "LEARN_LOSS_WEIGHTS",
)


@dataclass(frozen=True)
class Slot:
    """The position of a module in a detector."""

    attribute: str
    """name of the module in the detector, which is the prefix of its state_dict keys"""
    section: str
    """key in MODEL"""
    registry: Registry[type[nn.Module]]


TOPOLOGY = (
    Slot("vfe", "VFE", registry.VFES),
    Slot("backbone_3d", "BACKBONE_3D", registry.BACKBONES_3D),
    Slot("map_to_bev_module", "MAP_TO_BEV", registry.MAP_TO_BEVS),
    Slot("pfe", "PFE", registry.PFES),
    Slot("backbone_2d", "BACKBONE_2D", registry.BACKBONES_2D),
    Slot("dense_head", "DENSE_HEAD", registry.DENSE_HEADS),
    Slot("segment_head", "SEGMENT_HEAD", registry.TASK_HEADS),
    Slot("lane_head", "LANE_HEAD", registry.TASK_HEADS),
    Slot("point_head", "POINT_HEAD", registry.TASK_HEADS),
    Slot("roi_head", "ROI_HEAD", registry.TASK_HEADS),
)
SECTIONS = tuple(slot.section for slot in TOPOLOGY)


@dataclass(frozen=True)
class Part:
    """A module of the config: its position, class and settings."""

    slot: Slot
    cls: type[nn.Module]
    settings: Any


def slots_of(model_cfg: Mapping[str, Any]) -> list[Slot]:
    """Slots used by ``model_cfg``, in order; ``*_HEAD`` sections that are not in TOPOLOGY come last."""
    known = [slot for slot in TOPOLOGY if model_cfg.get(slot.section) is not None]
    further = [key for key in model_cfg if key.endswith("_HEAD") and key not in SECTIONS]
    return known + [Slot(key.lower(), key, registry.TASK_HEADS) for key in further]


def read_parts(model_cfg: Mapping[str, Any], faults: list[str]) -> list[Part]:
    """Classes and settings of all modules; errors are appended to ``faults``."""
    slots = slots_of(model_cfg)
    known = [*SECTIONS, *OTHER_KEYS]
    for key in model_cfg:
        if key not in known and not key.endswith("_HEAD"):
            faults.append(
                f"MODEL.{key} is not a key of the model, or not implemented; known keys: "
                f"{', '.join(known)}, and any *_HEAD"
            )
    parts = [_read_part(slot, model_cfg[slot.section], faults) for slot in slots]
    return [part for part in parts if part is not None]


def _read_part(slot: Slot, section: object, faults: list[str]) -> Part | None:
    where = f"MODEL.{slot.section}"
    if not isinstance(section, Mapping) or not isinstance(section.get("NAME"), str):
        faults.append(f"{where} must be a section with a NAME (a string); got {section!r}")
        return None
    try:
        cls = slot.registry.get(section["NAME"])
    except ConfigError as error:
        hint = f"{section['NAME']} is not implemented. {registry.PLUGIN_HINT}"
        faults.append(f"{where}.NAME: {error} {hint}")
        return None
    settings_class = getattr(cls, "Settings", None)
    if settings_class is None:
        return Part(slot, cls, section)
    values = {key: value for key, value in section.items() if key != "NAME"}
    settings = read_settings(settings_class, values, where, faults)
    return None if settings is None else Part(slot, cls, settings)
