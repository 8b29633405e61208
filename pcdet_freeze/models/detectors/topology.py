"""Mapping from sections of the model config to modules, in the order in which they run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from pcdet_freeze.config.schema import LayoutKeys, LossKeys
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models import registry
from pcdet_freeze.models.detectors import several_heads
from pcdet_freeze.models.head_outputs import FINAL
from pcdet_freeze.models.loss_normalization import Kind
from pcdet_freeze.models.post_processing import PostProcessingSettings
from pcdet_freeze.ops.maps.map_layout import Choice
from pcdet_freeze.registry import Registry
from pcdet_freeze.utils.settings.names import did_you_mean
from pcdet_freeze.utils.settings.sections import read_named, read_section

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
    """key in MODEL; of one of several heads, that in DENSE_HEADS too"""
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
    class_names: tuple[str, ...] = ()
    """of a head of DENSE_HEADS; empty: all classes"""


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

    @property
    def several_heads(self) -> bool:
        """Whether the dense heads are those of DENSE_HEADS."""
        return any(part.class_names for part in self.parts)


def read_model(
    model_cfg: Mapping[str, Any],
    post_processing: type[Any],
    predictions: str,
    class_names: Sequence[str] | None = None,
) -> tuple[ModelSettings, list[str]]:
    """Read MODEL of a detector: (settings, every fault). With faults the settings are not complete.

    Args:
        post_processing: dataclass of MODEL.POST_PROCESSING.
        predictions: key of the batch that the post-processing reads.
        class_names: CLASS_NAMES of the config; None: not known.
    """
    faults: list[str] = []
    parts, settings = read_parts(model_cfg, faults, class_names), None
    if any(part.class_names for part in parts):
        post_processing = PostProcessingSettings  # of all heads together
    if model_cfg.get("POST_PROCESSING") is not None:
        section = model_cfg["POST_PROCESSING"]
        settings, wrong = read_section(post_processing, section, "MODEL.POST_PROCESSING")
        faults += [*wrong, *_raw_score_faults(parts, settings)]
    elif any(part.class_names or predictions in getattr(part.cls, "writes", ()) for part in parts):
        faults.append("MODEL.POST_PROCESSING is required where a head predicts boxes, but missing")
    if not parts and not faults:
        faults.append("MODEL must have sections for its modules (VFE, BACKBONE_2D, ...); got none")
    losses, wrong = read_section(LossKeys, model_cfg, "MODEL")
    faults += wrong
    weights = dict(losses.loss_weights or {}) if losses is not None else {}
    sound = {part.slot.attribute: hasattr(part.cls, "get_loss") for part in parts}
    slots = [slot for slot, _ in sections_of(model_cfg)]
    heads = [slot.attribute for slot in slots if sound.get(slot.attribute, True)]
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
    """Head -> how its loss is normalised; by default over all ranks in heads of further tasks and classes."""
    kinds: dict[str, Kind] = {}
    for part in parts:
        name = part.slot.attribute
        further = part.slot.registry is registry.TASK_HEADS or (
            part.class_names and name != several_heads.FIRST
        )
        default = "global" if further else "local"
        kind = chosen.get(name, default) if isinstance(chosen, dict) else chosen or default
        kinds[name] = "global" if kind == "global" else "local"
        named = isinstance(chosen, dict) and name in chosen
        if named and kind == "global" and not hasattr(part.cls, "normalizers"):
            faults.append(
                f"MODEL.LOSS_NORMALIZATION.{name} must be local, since {part.cls.__name__} has no method "
                "normalizers; got global"
            )
    return kinds


def _raw_score_faults(parts: Sequence[Part], settings: Any) -> list[str]:
    """Logits as scores, where a head of several gives probabilities."""
    named = [
        part.slot.section for part in parts if part.class_names and FINAL in getattr(part.cls, "writes", ())
    ]
    if not named or settings is None or not settings.output_raw_score:
        return []
    rule = f"must be False, since {named[0]} gives probabilities; got True"
    return [f"MODEL.POST_PROCESSING.OUTPUT_RAW_SCORE {rule}"]


def sections_of(model_cfg: Mapping[str, Any]) -> list[tuple[Slot, Any]]:
    """Slots used by ``model_cfg`` and their sections, in order of execution.

    The heads of DENSE_HEADS take the place of DENSE_HEAD. ``*_HEAD`` sections that are not in TOPOLOGY come
    last.
    """
    found: list[tuple[Slot, Any]] = []
    for slot in TOPOLOGY:
        if (section := model_cfg.get(slot.section)) is not None:
            found.append((slot, section))
        elif slot.attribute == several_heads.FIRST:
            several = several_heads.sections_of_heads(model_cfg)
            found += [(Slot(name, key, slot.registry), own) for name, (key, own) in several.items()]
    further = [key for key in model_cfg if key.endswith("_HEAD") and key not in SECTIONS]
    return found + [(Slot(key.lower(), key, registry.TASK_HEADS), model_cfg[key]) for key in further]


def read_parts(
    model_cfg: Mapping[str, Any], faults: list[str], class_names: Sequence[str] | None = None
) -> list[Part]:
    """Classes and settings of all modules; errors are appended to ``faults``."""
    known = [*SECTIONS, several_heads.KEY, *OTHER_KEYS]
    for key in model_cfg:
        if key not in known and not key.endswith("_HEAD"):
            faults.append(
                f"MODEL.{key} is not a key of the model, or is not implemented{did_you_mean(key, known)} "
                f"(known: {', '.join(known)}, and any *_HEAD)"
            )
    faults += several_heads.key_faults(model_cfg, _taken(model_cfg))
    parts = [_read_part(slot, section, faults) for slot, section in sections_of(model_cfg)]
    found = [part for part in parts if part is not None]
    classes = {part.slot.attribute: part.class_names for part in found if part.class_names}
    # with another fault a head may be missing here
    faults += several_heads.class_faults(classes, None if faults else class_names) if classes else ()
    return found


def _taken(model_cfg: Mapping[str, Any]) -> list[str]:
    """Names of modules that no head of DENSE_HEADS may have."""
    own = [slot.attribute for slot in TOPOLOGY if slot.attribute != several_heads.FIRST]
    return own + [key.lower() for key in model_cfg if key.endswith("_HEAD") and key not in SECTIONS]


def _read_part(slot: Slot, section: object, faults: list[str]) -> Part | None:
    classes: tuple[str, ...] = ()
    if slot.section.startswith(several_heads.KEY):
        classes = several_heads.read_classes(section, f"MODEL.{slot.section}", faults)
        if isinstance(section, Mapping):
            section = {key: value for key, value in section.items() if key != "CLASS_NAMES"}

    def find(name: str) -> type[nn.Module]:
        try:
            return slot.registry.get(name)
        except ConfigError as error:
            raise ConfigError(f"{error}. {name} is not implemented. {registry.PLUGIN_HINT}") from error

    found, wrong = read_named(find, section, f"MODEL.{slot.section}")
    faults += wrong
    return None if found is None else Part(slot, *found, classes)
