"""Files that commands write: JSON, whole or not at all; whether a place can be written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.file_formats.files import replacing
from pcdet_freeze.errors import ConfigError


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path``; an interrupted write leaves the file as it was."""
    with replacing(path, sync=False) as write:
        write((json.dumps(value, indent=1) + "\n").encode())


def require_folder(path: Path, flag: str) -> None:
    """Raise ConfigError where ``path`` cannot be a folder to write to; leaves none behind."""
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "is no folder" if not there.is_dir() else "cannot be written to"
        raise ConfigError(f"{flag} must be a folder to write to; got {path} ({there} {reason})")


def require_writable(path: Path, flag: str) -> None:
    """Raise ConfigError where ``path`` cannot be written; leaves no file behind."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        existed = path.exists()
        path.open("a").close()
        if not existed:
            path.unlink()
    except OSError as error:
        raise ConfigError(
            f"{flag} must be a file that can be written; got {path} ({error.strerror})"
        ) from error
