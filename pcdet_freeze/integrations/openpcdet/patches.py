"""Functions of other packages that are replaced for a while, and put back as they were."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

Around = Callable[..., Any]
"""``around(original, *args, **kwargs)``: what runs in place of ``original``."""


class Patches:
    """Every attribute that was replaced, and what it was.

    A function that somebody took away by name (``from pcdet.models import build_network``) is replaced there
    too, and put back there too. A reference that cannot be found (in a local variable) does, after
    :meth:`undo`, what the original does.
    """

    def __init__(self) -> None:
        self.active = True
        self._made: list[tuple[Any, str, Any, Any]] = []

    def wrap(self, owner: Any, name: str, around: Around) -> None:
        """Replace the function ``owner.name`` (of a module or class), once, by one that calls ``around``."""
        original = vars(owner)[name]
        if any(original is new for *_, new in self._made):
            return
        new = self._wrapper(original, around)
        self._made.append((owner, name, original, new))
        setattr(owner, name, new)
        if isinstance(owner, ModuleType):
            replace_everywhere(original, new)

    def has(self, owner: Any, name: str) -> bool:
        """Whether ``owner.name`` is replaced at present."""
        return any(owner is place and name == attribute for place, attribute, *_ in self._made)

    def undo(self) -> None:
        """Put every attribute back, the last one first."""
        self.active = False
        while self._made:
            owner, name, original, new = self._made.pop()
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
    """Put ``new`` wherever a loaded module has ``old`` as an attribute."""
    for module in list(sys.modules.values()):
        if isinstance(module, ModuleType):
            for name in [name for name, value in list(vars(module).items()) if value is old]:
                setattr(module, name, new)
