"""What to write in FREEZE.EVAL for a module whose own code depends on ``self.training``."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from pcdet_freeze.freezing.entries.paths import find, match, unwrap
from pcdet_freeze.freezing.eval_lock import base_class

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
"""classes whose modules have nothing in common"""


class Advice:
    """The fix of each finding; modules of one class have one, which is given once.

    The check finds the first module of a class that runs in one call: blocks of a transformer would be named
    one a run. Where each block is a call of its own, all are found.

    Args:
        root: the model.
        frozen: paths and modules to name.
    """

    def __init__(self, root: nn.Module, frozen: Iterable[tuple[str, nn.Module]]) -> None:
        self._root, self._frozen = root, list(frozen)
        self._given: set[str] = set()

    def after(self, finding: str, path: str) -> str:
        """``finding`` with its fix: the module at ``path`` and the frozen ones of its class in eval mode."""
        if path in self._given:
            return finding
        alike = self._same_class(path)
        self._given.update(alike)
        if len(alike) == 1:
            return f"{finding}. Lock it in eval mode: FREEZE.EVAL: [{path}]"
        entries = ", ".join(_entries(self._root, alike))
        fix = f"Lock the {len(alike)} frozen modules of this class in eval mode: FREEZE.EVAL: [{entries}]"
        return f"{finding}. {fix}"

    def _same_class(self, path: str) -> list[str]:
        found = find(self._root, path)
        own = unwrap(found[0]) if found else None
        kind = None if own is None else base_class(own)
        if kind is None or kind in CONTAINERS:
            return [path]
        frozen = [(place, unwrap(module)) for place, module in self._frozen]
        # the same module may have two paths
        alike = [path if module is own else place for place, module in frozen if base_class(module) is kind]
        return list(dict.fromkeys(alike if path in alike else [path, *alike]))


def _entries(root: nn.Module, paths: list[str]) -> list[str]:
    """``blocks.*.attention`` where that names exactly ``paths``, otherwise all of them."""
    columns = list(zip(*(path.split(".") for path in paths), strict=False))
    segments = [names[0] if len(set(names)) == 1 else "*" for names in columns]
    numbers = all(name.isdigit() for names in columns if len(set(names)) > 1 for name in names)
    entry = ".".join(segments)
    if numbers and sorted(match(root, entry).paths) == sorted(paths):
        return [entry]
    return paths
