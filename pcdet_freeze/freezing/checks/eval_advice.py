"""What to write in FREEZE.EVAL for a module whose own code depends on ``self.training``."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pcdet_freeze.freezing.entries.paths import find, match, unwrap
from pcdet_freeze.freezing.eval_lock import base_class

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""classes whose modules have nothing in common"""


def advice(root: nn.Module, frozen: Iterable[tuple[str, nn.Module]], path: str) -> str:
    """Name the module at ``path`` and the frozen ones of its class, which run the same code.

    The check finds the first of them only: blocks of a transformer would be named one a run.
    """
    alike = _same_class(root, frozen, path)
    if len(alike) == 1:
        return f"Lock it in eval mode: FREEZE.EVAL: [{path}]"
    entries = ", ".join(_entries(root, alike))
    return f"Lock the {len(alike)} frozen modules of this class in eval mode: FREEZE.EVAL: [{entries}]"


def _same_class(root: nn.Module, frozen: Iterable[tuple[str, nn.Module]], path: str) -> list[str]:
    found = find(root, path)
    kind = base_class(unwrap(found[0])) if found else None
    if kind is None or kind in CONTAINERS:
        return [path]
    alike = (place for place, module in frozen if base_class(unwrap(module)) is kind)
    return list(dict.fromkeys([path, *alike]))


def _entries(root: nn.Module, paths: list[str]) -> list[str]:
    """``blocks.*.attention`` where that names exactly ``paths``, otherwise all of them."""
    columns = list(zip(*(path.split(".") for path in paths), strict=False))
    segments = [names[0] if len(set(names)) == 1 else "*" for names in columns]
    numbers = all(name.isdigit() for names in columns if len(set(names)) > 1 for name in names)
    entry = ".".join(segments)
    if numbers and sorted(match(root, entry).paths) == sorted(paths):
        return [entry]
    return paths
