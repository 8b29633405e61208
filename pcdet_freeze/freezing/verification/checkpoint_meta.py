"""Freeze metadata of a checkpoint: list, schedule and certificate, under ``CHECKPOINT_KEY``."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import ndiff
from numbers import Integral
from pathlib import Path
from typing import Any

from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing import Certificate, FreezePlan
from pcdet_freeze.freezing.plan import ScheduleEntry, read_schedule


@dataclass(frozen=True)
class FreezeMetadata:
    """The freeze metadata of a checkpoint, and its position in the run."""

    begun: int = 0
    """number of epochs begun: finished ones, and one that was interrupted"""
    entries: tuple[str, ...] = ()
    parameters: bool = True
    schedule: tuple[ScheduleEntry, ...] = ()
    certificate: Certificate | None = None
    """None if nothing was frozen"""

    @classmethod
    def of(cls, state: Mapping[str, Any] | None) -> FreezeMetadata:
        """Read the metadata of a whole checkpoint; None: the start of a run. OpenPCDet's have no list.

        Raises CertificateError if the certificate cannot be read, CheckpointError for other damage.
        """
        try:
            return cls._read(state or {})
        except (AttributeError, TypeError, LookupError, OverflowError) as error:
            raise CheckpointError(
                f"The freeze metadata of a checkpoint must be what this package wrote, but cannot be read: "
                f"{error}. Resume from another checkpoint."
            ) from error

    @classmethod
    def _read(cls, state: Mapping[str, Any]) -> FreezeMetadata:
        metadata = state.get(CHECKPOINT_KEY) or {}
        freeze = metadata.get("freeze") or {}
        certificate = freeze.get("certificate")
        return cls(
            _count(state.get("epoch")) + bool((metadata.get("sampler") or {}).get("offset")),
            tuple(freeze.get("entries", ())),
            bool(freeze.get("parameters", True)),
            read_schedule(freeze.get("schedule"))[0],
            None if certificate is None else Certificate.from_plain(certificate),
        )

    def changes(self, plan: FreezePlan) -> list[str]:
        """Differences of ``plan``: one line per entry, ``-`` in the checkpoint, ``+`` in ``plan``."""
        lines = _diff(self.entries, plan.entries)
        if self.entries and plan.entries and self.parameters != plan.parameters:
            lines += [f"- PARAMETERS: {self.parameters}", f"+ PARAMETERS: {plan.parameters}"]
        schedules = (self.schedule, plan.schedule)
        return lines + _diff(*([f"SCHEDULE: {p.to_plain()}" for p in phases] for phases in schedules))


def _count(epoch: Any) -> int:
    if epoch is not None and not (isinstance(epoch, Integral) and int(epoch) >= 0):
        raise TypeError(f"its epoch must be a whole number, 0 or more; got {epoch!r:.80}")
    return int(epoch or 0)


def metadata_to_plain(plan: FreezePlan, certificate: Certificate) -> dict[str, Any]:
    """Plain data for a checkpoint, which :class:`FreezeMetadata` reads."""
    return {
        "entries": list(plan.entries),
        "parameters": plan.parameters,
        "schedule": [phase.to_plain() for phase in plan.schedule],
        "certificate": certificate.to_plain(),
    }


def log_list_changes(
    header: FreezeMetadata, plan: FreezePlan, is_over: bool, path: Path, logger: logging.Logger
) -> None:
    """Log the differences between ``plan`` and the list of the checkpoint at ``path``.

    Raises CheckpointError if the run ``is_over``: another list is then meant for a new stage.
    """
    changes = header.changes(plan)
    if not changes:
        return
    lines = "\n  ".join(["(- then, + now)", *changes])
    written = "with another freeze list" if header.entries else "without a freeze list: it froze nothing"
    if is_over:
        raise CheckpointError(
            f"A finished run cannot be resumed with another freeze list: {path} is its last checkpoint, so "
            f"nothing would be trained. {lines}\nFor a new stage pass the file as --pretrained_model and "
            "choose another --extra_tag; to continue the run, raise --epochs."
        )
    logger.warning("The checkpoint was written %s %s", written, lines)


def _diff(then: Sequence[str], now: Sequence[str]) -> list[str]:
    """Lines that only one list has, and lines in another order."""
    return [line for line in ndiff(list(then), list(now)) if line[0] in "+-"]


CHECKPOINT_KEY = "pcdet_freeze"
