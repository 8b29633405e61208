"""Run a callback right after a module of another package is imported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

Callback = Callable[[ModuleType], None]


class AfterImport(MetaPathFinder):
    """Meta path finder that finds no module itself: it adds a callback to the specs of other finders.

    Args:
        callbacks: name of a module, or the end of one after a dot -> called with the module after its import.
    """

    def __init__(self, callbacks: dict[str, Callback]) -> None:
        self.callbacks = callbacks

    def install(self) -> None:
        """Start; for modules that are imported already the callback runs now."""
        sys.meta_path.insert(0, self)
        for name, module in list(sys.modules.items()):
            callback = self._callback(name)
            if callback is not None and isinstance(module, ModuleType):
                callback(module)

    def uninstall(self) -> None:
        """Stop."""
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder is not self]

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of the other finders, with the callback added; None for modules without a callback."""
        callback = self._callback(fullname)
        if callback is None:
            return None
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = find(fullname, path, target) if find is not None and finder is not self else None
            if spec is not None:
                _call_after(spec, callback)
                return spec
        return None

    def _callback(self, name: str) -> Callback | None:
        ends = (end for end in self.callbacks if name == end or name.endswith("." + end))
        return next((self.callbacks[end] for end in ends), None)


def _call_after(spec: ModuleSpec, callback: Callback) -> None:
    loader = spec.loader
    if loader is None:  # a namespace package runs no code
        return
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        # another finder may have wrapped the loader as well, and asked this one again while it did
        vars(loader).pop("exec_module", None)
        run(module)
        callback(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]  # this loader loads this module only
