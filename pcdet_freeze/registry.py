"""Map the NAME of a config section to a class; an unknown NAME is an error that lists the known ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.settings.names import did_you_mean

T = TypeVar("T")


class Registry(Generic[T]):
    """Classes or functions of one kind, by the NAME that a config gives.

    >>> vfes = Registry("VFE")
    >>> @vfes.register
    ... class PillarVFE: ...
    >>> vfes.get("PillarVFE") is PillarVFE
    True
    """

    def __init__(self, kind: str) -> None:
        """``kind``: the config section whose NAME selects an item, or, with a dot in it, the whole key."""
        self.kind = kind if "." in kind else f"{kind} NAME"
        self._known: dict[str, T] = {}

    def register(self, item: T) -> T:
        """Decorator: register ``item`` under its ``__name__``; raises ConfigError for a name in use."""
        return self.register_as(item.__name__)(item)  # type: ignore[attr-defined]

    def register_as(self, name: str) -> Callable[[T], T]:
        """Decorator: register an item under ``name``; raises ConfigError for a name in use."""

        def add(item: T) -> T:
            if name in self._known:
                raise ConfigError(f"{self.kind} must be unique, but {name!r} is registered twice")
            self._known[name] = item
            return item

        return add

    def get(self, name: str) -> T:
        """Return the item called ``name``; raises ConfigError that lists the known names."""
        if name in self:
            return self._known[name]
        known = ", ".join(self.names()) or "(none)"
        raise ConfigError(
            f"{self.kind} must be one of {known}; got {name!r}{did_you_mean(name, self._known)}"
        )

    def names(self) -> list[str]:
        """Registered names, in order of registration."""
        return list(self._known)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self._known  # a list of a YAML has no hash
