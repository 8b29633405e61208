"""Something to do right after a module of another package has been imported, whoever imports it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Then = Callable[[ModuleType], None]


class AfterImport(MetaPathFinder):
    """Finds nothing itself: it lets the other finders find, and has a wanted module told of after it ran.

    Args:
        wanted: name of a module, or the end of one after a dot -> what to do with the module.
    """

    def __init__(self, wanted: dict[str, Then]) -> None:
        self.wanted = wanted

    def install(self) -> None:
        """Begin; modules that are loaded already are done at once."""
        sys.meta_path.insert(0, self)
        for name, module in list(sys.modules.items()):
            then = self._then(name)
            if then is not None and isinstance(module, ModuleType):
                then(module)

    def uninstall(self) -> None:
        """End."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec that the other finders give, made to tell; None for modules of no interest."""
        then = self._then(fullname)
        if then is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find is not None and finder is not self else None
            if spec is not None:
                _call_after(spec, then)
                return spec
        return None

    def _then(self, name: str) -> Then | None:
        ends = (end for end in self.wanted if name == end or name.endswith("." + end))
        return next((self.wanted[end] for end in ends), None)


def _call_after(spec: ModuleSpec, then: Then) -> None:
    loader = spec.loader
    if loader is None:  # a folder without __init__.py runs nothing
        return
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        del loader.exec_module
        run(module)
        then(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]  # on this loader, which loads this module only
