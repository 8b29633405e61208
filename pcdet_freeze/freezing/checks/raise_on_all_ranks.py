"""Raise on every rank what one rank found."""

from __future__ import annotations

from collections.abc import Sequence

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.utils import distributed


def raise_on_all_ranks(lines: Sequence[str], message: tuple[str, str]) -> None:
    """Raise FreezeError on every rank if any rank has found something. Collective: every rank must call it.

    Args:
        lines: what this rank found.
        message: the text before and after the lines of all ranks.
    """
    found = distributed.gather(list(lines))
    merged: dict[str, list[int]] = {}
    for rank, several in enumerate(found):
        for line in several:
            merged.setdefault(line, []).append(rank)
    if merged:
        everywhere = len(found)
        body = [
            f"  {line}" if len(ranks) == everywhere else f"  {line} (rank {', '.join(map(str, ranks))})"
            for line, ranks in merged.items()
        ]
        raise FreezeError("\n".join([message[0], *body, message[1]]))
