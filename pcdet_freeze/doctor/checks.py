"""The registry of checks, and how they are run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from pcdet_freeze.doctor.facts import Facts

Severity = Literal["error", "warning"]
State = Literal["sound", "trouble", "failed", "not applicable"]


@dataclass
class Case:
    """What is examined."""

    facts: Facts
    cfg_file: str | None = None
    overrides: tuple[str, ...] = ()
    """words of --set"""
    checkpoint: Path | None = None
    openpcdet: Path | None = None
    """folder of an OpenPCDet"""
    output: Path = Path("output")
    extra_tag: str = "default"
    workers: int = 4
    kept: dict[str, Any] = field(default_factory=dict)
    """what several checks read"""


class NotApplicable(Exception):
    """A check has nothing to look at; the text says why."""


@dataclass(frozen=True)
class Check:
    """One check. ``find`` yields one line for each trouble; what it needs and lacks is NotApplicable."""

    id: str
    about: str
    severity: Severity
    """error: a training fails, or trains on nonsense; warning: it may"""
    cure: str
    find: Callable[[Case], Iterable[str]]


@dataclass(frozen=True)
class Outcome:
    """What one check found."""

    id: str
    about: str
    severity: Severity
    state: State
    text: str
    """the trouble; or why it could not be checked"""
    cure: str
    """what to do; "" where there is nothing to do"""

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return asdict(self)


CHECKS: dict[str, Check] = {}


def check(
    name: str, about: str, severity: Severity, cure: str
) -> Callable[[Callable[[Case], Iterable[str]]], Callable[[Case], Iterable[str]]]:
    """Register a function as the check ``name``."""

    def register(find: Callable[[Case], Iterable[str]]) -> Callable[[Case], Iterable[str]]:
        CHECKS[name] = Check(name, about, severity, cure, find)
        return find

    return register


def examine(case: Case, names: Collection[str]) -> Iterator[Outcome]:
    """Run the checks ``names``, in the order of their registration; a check that itself fails is reported."""
    for one in CHECKS.values():
        if one.id in names:
            yield _outcome(one, case)


def _outcome(one: Check, case: Case) -> Outcome:
    def made(state: State, text: str = "", cure: str = "") -> Outcome:
        return Outcome(one.id, one.about, one.severity, state, text, cure)

    try:
        found = list(one.find(case))
    except NotApplicable as reason:
        return made("not applicable", str(reason))
    except Exception as error:
        words = f"the check itself failed: {type(error).__name__}: {error}"
        return made("failed", words, f"look at it by hand, or leave it out with --skip {one.id}")
    return made("trouble", "\n".join(found), one.cure) if found else made("sound")
