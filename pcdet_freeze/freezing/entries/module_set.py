"""A set of modules of one model, by path: subtrees, less subtrees inside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from pcdet_freeze.freezing.entries.paths import children, find, is_within


@dataclass(frozen=True)
class ModuleSet:
    """A set of subtrees with holes: the deepest path of ``plus`` or ``minus`` above a module decides."""

    plus: tuple[str, ...] = ()
    minus: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.plus)

    def contains(self, path: str) -> bool:
        """Whether the module at ``path`` is in the set."""
        yes = max((len(top) for top in self.plus if is_within(path, top)), default=-1)
        no = max((len(top) for top in self.minus if is_within(path, top)), default=-1)
        return yes > no

    def add(self, path: str) -> ModuleSet:
        """This set with all of ``path``."""
        rest = self._outside(path)
        return rest if rest.contains(path) else ModuleSet((*rest.plus, path), rest.minus)

    def remove(self, path: str) -> ModuleSet:
        """This set without any module of ``path``."""
        rest = self._outside(path)
        return ModuleSet(rest.plus, (*rest.minus, path)) if rest.contains(path) else rest

    def touches(self, path: str) -> bool:
        """Whether the set contains the module at ``path``, or one in it or around it."""
        return self.contains(path) or any(is_within(top, path) for top in self.plus)

    def outermost(self) -> tuple[str, ...]:
        """The outermost paths in the set."""
        return self._outermost

    @cached_property
    def _outermost(self) -> tuple[str, ...]:
        return tuple(top for top in self.plus if not any(is_within(top, t) for t in self.plus if t != top))

    def names(self, root: nn.Module) -> tuple[str, ...]:
        """The outermost paths in ``root``, one for each module."""
        found = {top: find(root, top) for top in self.outermost()}
        modules: dict[int, str] = {}
        for top, place in found.items():
            if place is not None:
                modules.setdefault(id(place[0]), top)
        return tuple(modules.values())

    def modules(self, root: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module | None]]:
        """Every (path, module, parent) in the set once, parents first; missing paths are skipped."""
        seen: set[tuple[int, bool]] = set()
        for top in self.outermost():
            found = find(root, top)
            # a stack and no recursion: this walk runs before every forward
            waiting = [(top, *found, True)] if found is not None else []
            while waiting:
                path, module, parent, inside = waiting.pop()
                if self.minus:
                    inside = path in self.plus or (inside and path not in self.minus)
                if (id(module), inside) in seen:
                    continue
                seen.add((id(module), inside))
                if inside:
                    yield path, module, parent
                if module._modules:
                    below = [(place, child, module, inside) for place, child in children(path, module)]
                    waiting += reversed(below)

    def _outside(self, path: str) -> ModuleSet:
        keep_plus = tuple(top for top in self.plus if not is_within(top, path))
        keep_minus = tuple(top for top in self.minus if not is_within(top, path))
        return ModuleSet(keep_plus, keep_minus)
