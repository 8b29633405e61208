"""Files of a cache: free space, reserved space, sizes as text."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from pcdet_freeze.errors import FreezeError

SPARE = 0.05
"""fraction of the free disk space that is not used"""


def free_bytes(folder: Path) -> int:
    """Bytes that a cache in ``folder``, which need not exist, may use of the free disk space."""
    there = next((path for path in (folder, *folder.absolute().parents) if path.is_dir()), Path("."))
    return int(shutil.disk_usage(there).free * (1 - SPARE))


def allocated(path: Path) -> int:
    """Bytes that a file takes on the disk."""
    return path.stat().st_blocks * 512


def size_text(count: float) -> str:
    """ "12.3 MB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.1f} GB"


def write_all(descriptor: int, data: Any, begin: int) -> None:
    """Write ``data`` to a file at the byte ``begin``; raises OSError where not all of it fits."""
    view = memoryview(data)
    while len(view):
        written = os.pwrite(descriptor, view, begin)
        view, begin = view[written:], begin + written


def make_file(path: Path, size: int) -> None:
    """Create a file of ``size`` reserved bytes: writing to a map on a full disk kills the process."""
    with open(path, "ab") as file:
        found = os.fstat(file.fileno()).st_size
        if found not in (0, size):
            raise FreezeError(
                f"{path} must have {size} bytes, but has {found}: it was truncated or belongs to something "
                f"else. Delete {path.parent}; it will be filled again."
            )
        if found == size:
            return
        if not hasattr(os, "posix_fallocate"):
            return os.truncate(path, size)
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError:
            os.truncate(path, 0)  # what a full disk could reserve stays reserved otherwise
            raise
