"""Build the same model again, although OpenPCDet's building changes what it starts from.

Some of OpenPCDet's modules write into their config while they are built (set abstraction layers prepend a
width to each entry of MLPS), and some classes count their instances and build the third one differently. A
second call of ``build_network`` with the same config therefore gives another model, and changes the user's
config once more. :class:`Rebuild` keeps both as they were before the first build.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

from torch import nn

Integers = dict[type, dict[str, int]]
"""class -> its own integer attributes"""


class Rebuild:
    """Calls ``build`` again as for the first time. Create it before the first call.

    Args:
        build: OpenPCDet's ``build_network``.
        args: its positional arguments. Configs among them are copied; the data set is shared.
        kwargs: its keyword arguments, likewise.
    """

    def __init__(self, build: Callable[..., nn.Module], args: tuple[Any, ...], kwargs: Mapping[str, Any]):
        self._build = build
        self._args = [_copied(value) for value in args]
        self._kwargs = {name: _copied(value) for name, value in kwargs.items()}
        self._integers = class_integers()

    def __call__(self) -> nn.Module:
        """A new model. The config, and the counters of the classes, are afterwards as they were."""
        args = map(_copied, self._args)
        kwargs = {name: _copied(value) for name, value in self._kwargs.items()}
        with _counters_from(self._integers):
            return self._build(*args, **kwargs)


def class_integers() -> Integers:
    """The integer attributes of every module class that exists, and of its base classes."""
    classes = {base for cls in _subclasses(nn.Module) for base in cls.__mro__}
    return {cls: _integers_of(cls) for cls in classes}


def _integers_of(cls: type) -> dict[str, int]:
    return {
        name: value
        for name, value in vars(cls).items()
        if isinstance(value, int) and not name.startswith("__")
    }


def _subclasses(cls: type) -> Iterator[type]:
    found: set[type] = {cls}
    left: list[type] = [cls]
    while left:
        subclasses: list[type] = type.__subclasses__(left.pop())
        new = [cls for cls in subclasses if cls not in found]
        found.update(new)
        left += new
    yield from found


@contextmanager
def _counters_from(start: Integers) -> Iterator[None]:
    """Context that begins with the counters of ``start`` and ends with those of now."""
    now = class_integers()
    _set_integers(start)
    try:
        yield
    finally:
        _set_integers(now)


def _set_integers(wanted: Integers) -> None:
    """Give each class the integers that it had. A class that did not exist then is left as it is."""
    for cls, integers in wanted.items():
        current = _integers_of(cls)
        for name in current.keys() - integers.keys():
            delattr(cls, name)
        for name, value in integers.items():
            if current.get(name) != value:
                setattr(cls, name, value)


def _copied(value: Any) -> Any:
    return deepcopy(value) if isinstance(value, Mapping) else value
