"""What config, model and pretrained checkpoint expect of the data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch
from typing import Any, Literal

import numpy as np

from pcdet_freeze.datasets.reading.bad_data import BadFramePolicy
from pcdet_freeze.models.detectors.several_heads import sections_of_heads

BOXES = "gt_boxes"
HEADS = {
    "POINT_HEAD": "gt_boxes",
    "ROI_HEAD": "gt_boxes",
    "SEGMENT_HEAD": "point_labels",
    "LANE_HEAD": "lane_map",
}
"""section of MODEL other than the dense heads -> the label that it learns from"""
VOXELS = "transform_points_to_voxels"
Level = Literal["error", "warning", "note"]
Columns = dict[str, tuple[float, ...]]
"""column of the points beyond x, y, z -> least value, 1 %, median, 99 %, greatest"""


@dataclass(frozen=True)
class DataFinding:
    """Something of the data that does not fit.

    ``error``: training would be pointless; ``warning``: it would lose something; ``note``: may be meant so.
    """

    kind: str
    level: Level
    text: str


@dataclass(frozen=True)
class Anchors:
    """Anchors of one class: sizes (n, 3) and heights of the bottoms in metres, least overlap of a match."""

    sizes: np.ndarray
    bottoms: tuple[float, ...]
    matched: float


@dataclass(frozen=True)
class Expected:
    """What the data should be like."""

    class_names: tuple[str, ...]
    limits: np.ndarray
    """POINT_CLOUD_RANGE (6,)"""
    learned: frozenset[str]
    """labels that a trainable head of the model learns from"""
    trained: tuple[str, ...] | None = None
    """classes of CLASS_NAMES that a trainable head learns; None: all"""
    labels: tuple[str, ...] = ()
    """labels that the data set says to have"""
    semantic_class_names: tuple[str, ...] = ()
    anchors: Mapping[str, Anchors] = field(default_factory=dict)
    max_voxels: Mapping[str, int] = field(default_factory=dict)
    """mode (train, test) -> MAX_NUMBER_OF_VOXELS"""
    num_lanes: int | None = None
    policy: BadFramePolicy = field(default_factory=BadFramePolicy)
    seen: Columns = field(default_factory=dict)
    """columns of the points that the pretrained checkpoint was trained on"""
    complete: bool = True
    """whether all frames were read: only then a missing class is one"""


def expected_of(cfg: Mapping[str, Any], dataset: Any, seen: Columns | None = None) -> Expected:
    """What ``cfg`` expects of ``dataset``, which was built from it."""
    model, data_cfg = cfg.get("MODEL") or {}, cfg["DATA_CONFIG"]
    return Expected(
        class_names=tuple(cfg["CLASS_NAMES"]),
        limits=np.asarray(dataset.point_cloud_range, np.float64),
        learned=frozenset(learned_labels(model)) if model else frozenset(dataset.labels),
        trained=trained_classes(model, cfg["CLASS_NAMES"]) if model else None,
        labels=tuple(dataset.labels),
        semantic_class_names=tuple(dataset.semantic_class_names),
        anchors=anchors_of(model),
        max_voxels=_max_voxels(data_cfg.get("DATA_PROCESSOR") or ()),
        num_lanes=(model.get("LANE_HEAD") or {}).get("NUM_LANES"),
        policy=dataset.policy,
        seen=seen or {},
    )


def learned_labels(model: Mapping[str, Any]) -> set[str]:
    """Labels of the heads that the list does not freeze as a whole."""
    found = {
        label
        for section, label in HEADS.items()
        if model.get(section) and not _is_frozen(model, section.lower())
    }
    trainable = any(not _is_frozen(model, name) for name in dense_heads(model))
    return found | ({BOXES} if trainable else set())


def trained_classes(model: Mapping[str, Any], class_names: Sequence[str]) -> tuple[str, ...]:
    """The classes that trainable heads learn; one of several dense heads has CLASS_NAMES of its own."""
    heads = [head for name, head in dense_heads(model).items() if not _is_frozen(model, name)]
    boxes = [name for name, label in HEADS.items() if label == BOXES]
    heads += [model[name] for name in boxes if model.get(name) and not _is_frozen(model, name.lower())]
    named = {name for head in heads for name in head.get("CLASS_NAMES") or class_names}
    return tuple(name for name in class_names if name in named)


def dense_heads(model: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Name of the module -> section, of DENSE_HEAD or of DENSE_HEADS."""
    several = {name: section for name, (_, section) in sections_of_heads(model).items()}
    single = {"dense_head": model["DENSE_HEAD"]} if model.get("DENSE_HEAD") else {}
    return {**single, **several}


def _is_frozen(model: Mapping[str, Any], module: str) -> bool:
    entries = model.get("NOT_TRAIN_IN_MULTI_TASK") or ()
    names = [entries] if isinstance(entries, str) else list(entries)
    return any(fnmatch(module, str(name)) for name in names)


def anchors_of(model: Mapping[str, Any]) -> dict[str, Anchors]:
    """Anchors of each class, of all heads that have some."""
    heads = dense_heads(model).values()
    entries = [entry for head in heads for entry in head.get("ANCHOR_GENERATOR_CONFIG") or ()]
    return {
        str(entry["class_name"]): Anchors(
            np.array(entry["anchor_sizes"], np.float64).reshape(-1, 3),
            tuple(float(height) for height in entry["anchor_bottom_heights"]),
            float(entry["matched_threshold"]),
        )
        for entry in entries
    }


def _max_voxels(processors: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    found = [step for step in processors if step.get("NAME") == VOXELS]
    return {mode: int(most) for mode, most in found[0]["MAX_NUMBER_OF_VOXELS"].items()} if found else {}


def columns_of(stored: object) -> Columns:
    """Columns as a checkpoint stores them; what is not five finite numbers each is left out."""
    found: Columns = {}
    for name, values in stored.items() if isinstance(stored, Mapping) else ():
        is_list = isinstance(values, list | tuple) and len(values) == 5
        if is_list and all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            found[str(name)] = tuple(float(value) for value in values)
    return found
