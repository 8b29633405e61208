"""JSON files of commands, written whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.file_formats.files import replacing
from pcdet_freeze.errors import ConfigError


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` to ``path``; an interrupted write leaves the file as it was."""
    with replacing(path, sync=False) as write:
        write((json.dumps(value, indent=1) + "\n").encode())


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
