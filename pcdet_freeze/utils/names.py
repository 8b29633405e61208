"""Suggestions for a name that is not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], count: int = 3, cutoff: float = 0.5) -> list[str]:
    """Up to ``count`` of ``known`` that resemble ``name``, upper and lower case alike, the best first.

    Args:
        cutoff: least similarity, from 0 to 1 (``difflib.get_close_matches``).
    """
    spelled: dict[str, list[str]] = {}
    for item in known:
        spelled.setdefault(item.lower(), []).append(item)
    close = difflib.get_close_matches(name.lower(), spelled, n=count, cutoff=cutoff)
    return [item for key in close for item in spelled[key]][:count]


def did_you_mean(name: object, known: Iterable[str]) -> str:
    """`` Did you mean 'X'?`` for the best match in ``known``, to end a message with; empty without one.

    >>> did_you_mean("PilarVFE", ["PillarVFE", "MeanVFE"])
    " Did you mean 'PillarVFE'?"
    """
    close = nearest(str(name), known, count=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
