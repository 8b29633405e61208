"""DATA_CONFIG of ConcatDataset."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pcdet_freeze.datasets.settings import DataSettings
from pcdet_freeze.utils.settings.rules import Count, Name, Place, Rule, at_least, between
from pcdet_freeze.utils.settings.sections import Section

EXAMPLE = "DATASETS: {kitti: {DATA_CONFIG: {_BASE_CONFIG_: cfgs/dataset_configs/kitti_dataset.yaml}}}"


@dataclass(frozen=True)
class MemberSettings(Section):
    """One of DATASETS: the config of a set, and how its frames become those of the joined set."""

    data_config: Mapping[str, Any]
    """config of the set, as it would train alone; what the joined set states replaces its own"""
    labels: tuple[Name, ...] | None = None
    """labels to use: gt_boxes, point_labels, lane_map; null: all that the set has"""
    class_map: dict[str, Name] = field(default_factory=dict)
    """label of a box -> name in the joined set; others keep their own"""
    point_class_map: dict[str, Name] = field(default_factory=dict)
    """class of a point -> name in the joined set, or ``ignore``; others keep their own"""
    fill: dict[str, Annotated[float, between(-1e6, 1e6)]] = field(default_factory=dict)
    """column of the points -> its value in all points of this set"""
    z_offset: Place = 0.0
    """metres added to z of points and boxes, so that the roads of all sets have one height"""
    weight: Annotated[float, at_least(0)] = 1.0
    """with BALANCE: set, the share of this set in an epoch, relative to the weights of the others"""


def _are_names(given: Mapping[str, Any]) -> bool:
    return bool(given) and all(name and name.replace("-", "").isalnum() for name in _plain(given))


def _plain(given: Mapping[str, Any]) -> list[str]:
    return [name.replace("_", "") for name in given]


Members = Annotated[
    dict[str, MemberSettings],
    Rule("a section of names (letters, digits, _, -) and sets, one or more", _are_names, advice=EXAMPLE),
]


@dataclass(frozen=True, kw_only=True)
class ConcatSettings(DataSettings):
    """DATA_CONFIG of ConcatDataset.

    POINT_CLOUD_RANGE, POINT_FEATURE_ENCODING, DATA_PROCESSOR, ON_BAD_FRAME, BAD_FRAME_LIMIT, ON_IMPLAUSIBLE
    and TIMEOUT hold for all sets. Each set has its DATA_AUGMENTOR; that of the joined set follows.
    """

    datasets: Members
    balance: Literal["none", "set", "task"] = "none"
    """what comes equally often in an epoch; none: every frame comes once"""
    tasks: tuple[Name, ...] = ()
    """labels that BALANCE: task balances; empty: all labels"""
    frames_per_epoch: Count | None = None
    """samples of an epoch with BALANCE: set or task; null: as many as there are frames"""
    semantic_classes: tuple[Name, ...] = ()
    """classes of points in the joined set; empty: those of all sets, in their order"""
    pred_velocity: bool = False
    """boxes have velocities; those of sets without them are NaN, which no loss counts"""

    def faults(self) -> Iterator[str]:
        """Keys without effect, and sets that are never drawn."""
        if self.balance == "none" and self.frames_per_epoch is not None:
            yield "FRAMES_PER_EPOCH needs BALANCE: set or task; without it every frame comes once"
        if self.balance != "task" and self.tasks:
            yield f"TASKS needs BALANCE: task; got BALANCE: {self.balance}"
        if not any(member.weight for member in self.datasets.values()):
            yield "DATASETS needs a set with a WEIGHT above 0"
