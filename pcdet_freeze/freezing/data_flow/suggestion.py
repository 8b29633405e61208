"""The shortest freeze list that keeps the outputs of given heads, from what the modules declare.

A head's outputs stay the same if the head and every part that helps to make what it reads are frozen. The
parts are those that the drift lint (:mod:`.drift_lint`) would warn about if only the head were frozen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.api import freeze
from pcdet_freeze.freezing.data_flow.drift_lint import feeding_parts, lint, live_parts, stage_children
from pcdet_freeze.freezing.data_flow.module_graph import Stage, stages
from pcdet_freeze.freezing.entries.paths import is_within
from pcdet_freeze.freezing.plan import KEY, FreezePlan
from pcdet_freeze.utils.settings.names import did_you_mean


@dataclass(frozen=True)
class Suggestion:
    """A freeze list, and what it leaves to train."""

    keep: tuple[str, ...]
    """heads whose outputs stay the same"""
    entries: tuple[str, ...]
    """of MODEL.NOT_TRAIN_IN_MULTI_TASK, in the order in which the modules run"""
    trains: tuple[str, ...]
    """outermost parts that still train"""
    losses: tuple[str, ...]
    """heads that still give a loss"""
    certain: bool
    """whether all modules on the way declare what they read and write; else more may be listed than needed"""

    def yaml(self) -> str:
        """The line for the config."""
        return f"{KEY}: [{', '.join(self.entries)}]"


def suggest(detector: nn.Module, keep: Sequence[str]) -> Suggestion:
    """The shortest list that keeps the outputs of the heads ``keep`` bit for bit.

    Args:
        detector: nothing of it may be frozen.
        keep: names of heads, such as ``dense_head``.

    Raises:
        FreezeError: a name is no head, or the detector does not declare the order of its modules.
    """
    order = stages(detector)
    heads = _heads(order)
    unknown = [name for name in keep if name not in heads]
    if unknown or not keep:
        name = unknown[0] if unknown else ""
        raise FreezeError(
            f"--keep must name heads of this model, one or more of {', '.join(heads) or '(it has none)'}; "
            f"got {name!r}{did_you_mean(name, heads)}"
        )
    found = [feeding_parts(order, place) for place, stage in enumerate(order) if stage.name in keep]
    needed = {*keep, *(part for parts, _ in found for part in parts)}
    entries = [entry for stage in order for entry in _of_stage(stage, needed)]
    trains = [part for stage in order for part in _left(stage, entries)]
    losses = tuple(head for head in heads if any(is_within(part, head) for part in trains))
    return Suggestion(tuple(keep), tuple(entries), tuple(trains), losses, all(sure for _, sure in found))


def _heads(order: Sequence[Stage]) -> list[str]:
    return [stage.name for stage in order if stage.has_loss]


def _of_stage(stage: Stage, needed: set[str]) -> list[str]:
    """The entries of ``needed`` in a stage, its name alone where they are all that it has."""
    own = live_parts(stage.name, stage.module)
    if stage.name in needed:
        return [stage.name] if own or stage.has_loss else []
    parts = [part for child in _split(stage) for part in child if part in needed]
    return [stage.name] if parts and len(parts) == sum(map(len, _split(stage))) else parts


def _split(stage: Stage) -> list[list[str]]:
    return [live_parts(path, child) for path, child in stage_children(stage).items()]


def _left(stage: Stage, entries: Sequence[str]) -> list[str]:
    """Outermost parts of a stage that no entry names."""
    if not any(is_within(entry, stage.name) for entry in entries):
        return live_parts(stage.name, stage.module)
    parts = [part for child in _split(stage) for part in child]
    return [part for part in parts if not any(is_within(part, entry) for entry in entries)]


def without(detector: nn.Module, found: Suggestion, entry: str) -> tuple[str, ...]:
    """The kept heads whose outputs change if ``entry`` trains; at the end nothing is frozen."""
    if entry in found.keep:
        return (entry,)
    rest = [other for other in found.entries if other != entry]
    handle = freeze(detector, FreezePlan(entries=tuple(rest)), certify=False)
    try:
        drifting = {name for drift in lint(detector) for name in drift.frozen}
    finally:
        handle.release()
    return tuple(name for name in found.keep if name in drifting)
