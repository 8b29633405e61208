"""What a checkpoint says of the freeze that it was written under, read before anything is frozen anew."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import ndiff
from pathlib import Path
from typing import Any

from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing import Certificate, FreezePlan
from pcdet_freeze.freezing.plan import ScheduleEntry, read_schedule


@dataclass(frozen=True)
class FreezeMetadata:
    """The freeze part of a checkpoint: where the run stands, the list it has, the proof."""

    begun: int = 0
    """epochs begun: the finished ones, and the one in the middle of which the run stands"""
    entries: tuple[str, ...] = ()
    parameters: bool = True
    schedule: tuple[ScheduleEntry, ...] = ()
    certificate: Certificate | None = None
    """None where nothing was frozen"""

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> FreezeMetadata:
        """Read a whole checkpoint; None is the start of a run. One of OpenPCDet's has no list.

        Raises CertificateError for a stored certificate that cannot be read.
        """
        state = state or {}
        ours = state.get(CHECKPOINT_KEY) or {}
        freeze = ours.get("freeze") or {}
        certificate = freeze.get("certificate")
        return cls(
            int(state.get("epoch") or 0) + bool((ours.get("sampler") or {}).get("offset")),
            tuple(freeze.get("entries", ())),
            bool(freeze.get("parameters", True)),
            read_schedule(freeze.get("schedule"))[0],
            None if certificate is None else Certificate.from_plain(certificate),
        )

    def changes(self, plan: FreezePlan) -> list[str]:
        """How ``plan`` differs: a line an entry and phase, ``+`` now, ``-`` then; empty where it is equal."""
        lines = _diff(self.entries, plan.entries)
        if self.entries and plan.entries and self.parameters != plan.parameters:
            lines += [f"- PARAMETERS: {self.parameters}", f"+ PARAMETERS: {plan.parameters}"]
        schedules = (self.schedule, plan.schedule)
        return lines + _diff(*([f"SCHEDULE: {p.to_plain()}" for p in phases] for phases in schedules))


def metadata_to_plain(plan: FreezePlan, certificate: Certificate) -> dict[str, Any]:
    """What :class:`FreezeMetadata` reads, as plain data for a checkpoint."""
    return {
        "entries": list(plan.entries),
        "parameters": plan.parameters,
        "schedule": [phase.to_plain() for phase in plan.schedule],
        "certificate": certificate.to_plain(),
    }


def log_list_changes(
    header: FreezeMetadata, plan: FreezePlan, is_over: bool, path: Path, logger: logging.Logger
) -> None:
    """Log, line by line, how ``plan`` differs from that of the checkpoint at ``path``.

    Raises CheckpointError where the run ``is_over``: another list in its folder was meant for a new stage.
    """
    changes = header.changes(plan)
    if not changes:
        return
    lines = "\n  ".join(["(- then, + now)", *changes])
    if is_over:
        raise CheckpointError(
            f"A run can only go on under another freeze list before its end, but that of {path} is finished: "
            f"nothing would be trained. {lines}\nFor a new stage give the file as --pretrained_model and "
            "choose another --extra_tag; to go on, raise --epochs."
        )
    logger.warning("The checkpoint was written with another freeze list %s", lines)


def _diff(then: Sequence[str], now: Sequence[str]) -> list[str]:
    """Lines that only one has; of lists that hold the same in another order, those that moved."""
    return [line for line in ndiff(list(then), list(now)) if line[0] in "+-"]


CHECKPOINT_KEY = "pcdet_freeze"
