"""Mapping from sections of the model config to modules, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from pcdet_freeze.config.schema import LayoutKeys, LossKeys
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models import registry
from pcdet_freeze.models.loss_normalization import Kind
from pcdet_freeze.ops.maps.map_layout import Choice
from pcdet_freeze.registry import Registry
from pcdet_freeze.utils.names import did_you_mean
from pcdet_freeze.utils.sections import read_named, read_section

OTHER_KEYS = (
    "NAME",
    "POST_PROCESSING",
    "NOT_TRAIN_IN_MULTI_TASK",
    "FREEZE",
    "LOSS_WEIGHTS",
    "LEARN_LOSS_WEIGHTS",
    "LOSS_NORMALIZATION",
    "CHANNELS_LAST",
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


@dataclass(frozen=True)
class ModelSettings:
    """MODEL, read: what a detector is built from."""

    parts: list[Part]
    post_processing: Any
    """None where no head predicts boxes"""
    loss_weights: Mapping[str, float]
    """head -> factor of its loss"""
    learn_loss_weights: bool
    loss_normalization: Mapping[str, Kind]
    """head -> kind of :class:`pcdet_freeze.models.loss_normalization.LossNormalization`"""
    channels_last: Choice


def read_model(
    model_cfg: Mapping[str, Any], post_processing: type[Any], predictions: str
) -> tuple[ModelSettings, list[str]]:
    """Read MODEL of a detector: (settings, every fault). With faults the settings are not complete.

    Args:
        post_processing: dataclass of MODEL.POST_PROCESSING.
        predictions: key of the batch that the post-processing reads.
    """
    faults: list[str] = []
    parts, settings = read_parts(model_cfg, faults), None
    if model_cfg.get("POST_PROCESSING") is not None:
        section = model_cfg["POST_PROCESSING"]
        settings, wrong = read_section(post_processing, section, "MODEL.POST_PROCESSING")
        faults += wrong
    elif any(predictions in getattr(part.cls, "writes", ()) for part in parts):
        faults.append("MODEL.POST_PROCESSING is required where a head predicts boxes, but missing")
    if not parts and not faults:
        faults.append("MODEL must have sections for its modules (VFE, BACKBONE_2D, ...); got none")
    losses, wrong = read_section(LossKeys, model_cfg, "MODEL")
    faults += wrong
    weights = dict(losses.loss_weights or {}) if losses is not None else {}
    sound = {part.slot.attribute: hasattr(part.cls, "get_loss") for part in parts}
    heads = [slot.attribute for slot in slots_of(model_cfg) if sound.get(slot.attribute, True)]
    chosen = losses.loss_normalization if losses is not None else None
    by_head = chosen if isinstance(chosen, dict) else {}
    faults += [
        f"MODEL.{key}.{name} is not a head of this model{did_you_mean(name, heads)} "
        f"(heads: {', '.join(heads) or 'none'})"
        for key, names in (("LOSS_WEIGHTS", weights), ("LOSS_NORMALIZATION", by_head))
        for name in names
        if name not in heads
    ]
    learned = losses is not None and losses.learn_loss_weights
    layout, wrong = read_section(LayoutKeys, model_cfg, "MODEL")
    faults += wrong
    maps: Choice = layout.channels_last if layout is not None else "auto"
    return ModelSettings(parts, settings, weights, learned, _kinds(parts, chosen, faults), maps), faults


def _kinds(parts: list[Part], chosen: Kind | dict[str, Kind] | None, faults: list[str]) -> dict[str, Kind]:
    """Head -> how its loss is normalised; by default over all ranks in heads of further tasks."""
    kinds: dict[str, Kind] = {}
    for part in parts:
        name, default = (
            part.slot.attribute,
            "global" if part.slot.registry is registry.TASK_HEADS else "local",
        )
        kind = chosen.get(name, default) if isinstance(chosen, dict) else chosen or default
        kinds[name] = "global" if kind == "global" else "local"
        named = isinstance(chosen, dict) and name in chosen
        if named and kind == "global" and not hasattr(part.cls, "normalizers"):
            faults.append(
                f"MODEL.LOSS_NORMALIZATION.{name} must be local, since {part.cls.__name__} has no method "
                "normalizers; got global"
            )
    return kinds


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
                f"MODEL.{key} is not a key of the model, or is not implemented{did_you_mean(key, known)} "
                f"(known: {', '.join(known)}, and any *_HEAD)"
            )
    parts = [_read_part(slot, model_cfg[slot.section], faults) for slot in slots]
    return [part for part in parts if part is not None]


def _read_part(slot: Slot, section: object, faults: list[str]) -> Part | None:
    def find(name: str) -> type[nn.Module]:
        try:
            return slot.registry.get(name)
        except ConfigError as error:
            raise ConfigError(f"{error}. {name} is not implemented. {registry.PLUGIN_HINT}") from error

    found, wrong = read_named(find, section, f"MODEL.{slot.section}")
    faults += wrong
    return None if found is None else Part(slot, *found)
