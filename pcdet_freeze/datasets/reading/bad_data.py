"""What a training does with data that cannot be used: DATA_CONFIG.ON_BAD_FRAME and BAD_FRAME_LIMIT."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from pcdet_freeze.errors import DataError

FRAME, OBJECT = "frame", "database object"
MOST_NAMES = 20
"""names in a message"""


class BadItem(NamedTuple):
    """A frame, or an object of the ground-truth database, that was left out."""

    kind: str
    name: str
    reason: str


@dataclass(frozen=True)
class BadFramePolicy:
    """``skip``: leave bad items out, up to the share ``limit`` of their kind; otherwise they are errors."""

    skip: bool = False
    limit: float = 0.01

    def most(self, total: int) -> int:
        """How many bad items of ``total`` are left out; one always is."""
        return max(1, int(self.limit * total))


@dataclass
class BadData:
    """The different bad items of a run.

    Args:
        policy: what is allowed.
        totals: kind -> number of items that there are.
    """

    policy: BadFramePolicy
    totals: Mapping[str, int]
    found: dict[tuple[str, str], str] = field(default_factory=dict)
    """(kind, name) -> reason"""

    def add(self, items: Collection[BadItem]) -> None:
        """Count ``items``, each once; DataError where those of their kind are more than the limit now."""
        self.merge(items)
        self.check({item.kind for item in items})

    def merge(self, items: Collection[BadItem]) -> None:
        """Count ``items``, each once."""
        for item in items:
            self.found.setdefault((item.kind, item.name), item.reason)

    def check(self, kinds: Collection[str] | None = None) -> None:
        """Raise DataError where the items of one of ``kinds`` (None: of any kind) are more than the limit."""
        for kind in sorted({kind for kind, _ in self.found} if kinds is None else kinds):
            total, names = self.totals.get(kind, 0), self.names(kind)
            if total and len(names) > self.policy.most(total):
                raise DataError(
                    f"DATA_CONFIG.BAD_FRAME_LIMIT: at most {self.policy.most(total)} bad {kind}s of {total} "
                    f"are left out ({self.policy.limit:g}), but {len(names)} were found: {shown(names)}. "
                    f"For example: {self.found[kind, names[-1]]}. Repair the data, or raise the limit"
                )

    def names(self, kind: str) -> list[str]:
        """Names of the bad items of a kind."""
        return [name for other, name in self.found if other == kind]


def shown(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return ", ".join(names[:MOST_NAMES]) + more
