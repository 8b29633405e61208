"""One error for all faults of a config, each with the file and line of its key.

A fault is one line that begins with its dotted key: ``MODEL.FREEZE.FUSE must be ...``. A config knows where
its keys are: ``config.yaml_files`` puts ``_marks`` on it, dotted key -> "file, line N".
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from pcdet_freeze.errors import ConfigError, PCDetFreezeError


def raise_faults(
    faults: Sequence[str], cfg: object = None, error: type[PCDetFreezeError] = ConfigError
) -> None:
    """Raise one ``error`` that lists all faults, each behind file and line where ``cfg`` knows them."""
    lines = list(dict.fromkeys(with_place(cfg, fault) for fault in faults))
    if len(lines) == 1:
        raise error(lines[0])
    if lines:
        raise error("\n  - ".join([f"the config has {len(lines)} faults:", *lines]))


def with_place(cfg: object, fault: str) -> str:
    """Return ``fault`` behind the file and line of the key that it begins with, unless it has a place."""
    if any(fault.startswith(f"{mark}: ") for mark in getattr(cfg, "_marks", {}).values()):
        return fault
    place = place_of(cfg, re.split(r"[\s:]", fault, maxsplit=1)[0])
    return f"{place}: {fault}" if place else fault


def place_of(cfg: object, key: str) -> str:
    """File and line of a dotted key, or of the nearest parent that has one; "" where it is not known."""
    marks: Mapping[str, str] = getattr(cfg, "_marks", {})
    key = re.sub(r"\[(\d+)\]", r".\1", key)
    while key and key not in marks:
        key = key.rpartition(".")[0]
    return marks.get(key, "")
