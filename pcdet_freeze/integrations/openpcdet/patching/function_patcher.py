"""Replace functions of other packages, and restore them."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

Around = Callable[..., Any]
"""``around(original, *args, **kwargs)`` is called instead of ``original``."""


class Patches:
    """The replaced attributes and their originals.

    A function that another module imported by name (``from pcdet.models import build_network``) is replaced
    and restored there too. A reference that cannot be found, such as a local variable, calls the original
    after :meth:`undo`.
    """

    def __init__(self) -> None:
        self.active = True
        self._patched: list[tuple[Any, str, Any, Any]] = []

    def wrap(self, owner: Any, name: str, around: Around) -> None:
        """Replace the function ``owner.name`` (of a module or class), once, by one that calls ``around``."""
        original = vars(owner)[name]
        if any(original is new for *_, new in self._patched):
            return
        new = self._wrapper(original, around)
        self._patched.append((owner, name, original, new))
        setattr(owner, name, new)
        if isinstance(owner, ModuleType):
            replace_everywhere(original, new)

    def has(self, owner: Any, name: str) -> bool:
        """Whether ``owner.name`` is replaced now."""
        return any(owner is place and name == attribute for place, attribute, *_ in self._patched)

    def undo(self) -> None:
        """Restore every attribute, the last one first."""
        self.active = False
        while self._patched:
            owner, name, original, new = self._patched.pop()
            if vars(owner).get(name) is new:
                setattr(owner, name, original)
            if isinstance(owner, ModuleType):
                replace_everywhere(new, original)

    def _wrapper(self, original: Callable[..., Any], around: Around) -> Callable[..., Any]:
        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            return around(original, *args, **kwargs) if self.active else original(*args, **kwargs)

        return wrapper


def replace_everywhere(old: Any, new: Any) -> None:
    """Replace ``old`` by ``new`` in the attributes of every loaded module."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name in [name for name, value in list(vars(module).items()) if value is old]:
                setattr(module, name, new)
