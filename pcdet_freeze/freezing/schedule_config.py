"""MODEL.FREEZE.SCHEDULE as checked values; :mod:`.schedule` says what it means for a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

KEY = "FREEZE.SCHEDULE"
KEYS = ("EPOCH", "TRAIN", "LR_SCALE")
EXAMPLE = "- {EPOCH: 10, TRAIN: [backbone_2d.blocks], LR_SCALE: 0.1}"


@dataclass(frozen=True)
class ScheduleEntry:
    """From one epoch on, named parts train."""

    epoch: int
    """Finished epochs after which it begins."""
    train: tuple[str, ...]
    """Frozen modules, or parts of them, as in the list."""
    lr_scale: float = 1.0
    """Their learning rate is this multiple of the others'."""

    def to_plain(self) -> dict[str, Any]:
        """The phase as it stands in a config."""
        return {"EPOCH": self.epoch, "TRAIN": list(self.train), "LR_SCALE": self.lr_scale}


def read_schedule(value: object) -> tuple[tuple[ScheduleEntry, ...], list[str]]:
    """FREEZE.SCHEDULE -> (its phases, every fault)."""
    if value is None:
        return (), []
    if not isinstance(value, list | tuple):
        kind = type(value).__name__
        return (), [f"{KEY} must be a list of phases; got {kind} {value!r}: write {EXAMPLE}"]
    phases, faults = [], []
    for number, item in enumerate(value):
        plain = item.to_plain() if isinstance(item, ScheduleEntry) else item
        found = _faults(plain, f"{KEY}[{number}]")
        faults += found
        if not found:
            phases.append(
                ScheduleEntry(plain["EPOCH"], tuple(plain["TRAIN"]), float(plain.get("LR_SCALE", 1.0)))
            )
    return tuple(phases), faults + _order_faults(phases)


def _order_faults(phases: Sequence[ScheduleEntry]) -> list[str]:
    return [
        f"{KEY}: phases must stand in the order in which they begin; EPOCH {later.epoch} stands behind "
        f"EPOCH {earlier.epoch}: move it"
        for earlier, later in pairwise(phases)
        if later.epoch < earlier.epoch
    ]


def _faults(item: Any, where: str) -> list[str]:
    if not isinstance(item, Mapping):
        return [f"{where} must be a mapping; got {type(item).__name__} {item!r}: write {EXAMPLE}"]
    faults = [_unknown(key, where) for key in item if key not in KEYS]
    faults += [f"{where}.{key} is missing: write {EXAMPLE}" for key in KEYS[:2] if key not in item]
    epoch, train, scale = item.get("EPOCH", 1), item.get("TRAIN", ["-"]), item.get("LR_SCALE", 1.0)
    if not _is_number(epoch, int) or epoch < 1:
        faults.append(
            f"{where}.EPOCH must be a whole number of finished epochs, 1 or more; got {epoch!r}: what trains "
            "from the start does not belong into the list"
        )
    if not isinstance(train, list | tuple) or not train or not all(_is_name(name) for name in train):
        faults.append(f"{where}.TRAIN must be a list of module names without '!'; got {train!r}")
    if not _is_number(scale, int | float) or not 0 < scale < math.inf:
        faults.append(f"{where}.LR_SCALE must be a number above 0; got {scale!r}")
    return faults


def _is_number(value: object, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name.strip()) and not name.startswith("!")


def _unknown(key: object, where: str) -> str:
    close = get_close_matches(str(key).upper(), KEYS, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{where} knows {', '.join(KEYS)}; got {key!r}{hint}"
