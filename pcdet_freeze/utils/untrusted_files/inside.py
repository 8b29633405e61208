"""Paths that come from files and flags stay within their folder."""

from __future__ import annotations

from pathlib import Path

from pcdet_freeze.errors import DataError, PCDetFreezeError


def inside(
    folder: Path, relative: str | Path, what: str = "a path", error: type[PCDetFreezeError] = DataError
) -> Path:
    """Return ``folder / relative``.

    The check is of the words of the path alone: a link inside ``folder`` may lead out of it, as links to
    data on another disk do.

    Args:
        folder: where the path must stay.
        relative: what a file or a flag names: a frame id, ``gt_database/000001_Car_0.bin``.
        what: what ``relative`` is, for the message.
        error: the class of the exception.

    Raises:
        error: ``relative`` is absolute, goes up with ``..``, or holds a control character.
    """
    text = str(relative)
    parts = text.replace("\\", "/").split("/")
    if ".." in parts or text.startswith(("/", "\\")) or not text.isprintable():
        shown = text if len(text) <= 80 else f"{text[:80]}..."
        raise error(f"{what} must stay within {folder}: a relative path without '..'; got {shown!r}")
    return folder / text
