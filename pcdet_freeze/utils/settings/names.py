"""Which of the known names somebody meant: the one place that asks difflib for it."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, known: Iterable[object], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """Return up to ``count`` of ``known`` that look like ``name`` in either case, the best first."""
    spelled: dict[str, list[str]] = {}
    for item in map(str, known):
        spelled.setdefault(item.lower(), []).append(item)
    close = difflib.get_close_matches(str(name).lower(), spelled, n=count, cutoff=cutoff)
    return [item for key in close for item in spelled[key]][:count]


def did_you_mean(name: object, known: Iterable[object]) -> str:
    """Return ``"; did you mean X?"`` for the nearest of ``known``, or an empty string."""
    close = nearest(name, known, 1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
