"""Whether plain data, as read from JSON, are what the fields of a dataclass say."""

from __future__ import annotations

import dataclasses
import types
import typing
from typing import Any


def require_types(record: Any) -> None:
    """Raise TypeError with the first field that does not fit, of ``record`` or of a dataclass in it."""
    hints = typing.get_type_hints(type(record))
    for field in dataclasses.fields(record):
        value = getattr(record, field.name)
        if not fits(value, hints[field.name]):
            raise TypeError(f"{field.name} must be {hints[field.name]}; got {str(value)!r:.80}")


def fits(value: Any, hint: Any) -> bool:
    """Whether ``value`` is of the type ``hint``; a number in a mapping may be None, which was not finite."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (types.UnionType, typing.Union):
        return any(fits(value, one) for one in inner)
    if origin is list:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if origin is dict:
        return isinstance(value, dict) and all(_fits_in_mapping(one, inner[1]) for one in value.values())
    if hint is float:
        return isinstance(value, int | float)
    if dataclasses.is_dataclass(hint) and isinstance(value, hint):  # type: ignore[arg-type]
        require_types(value)
    return isinstance(value, hint)


def _fits_in_mapping(value: Any, hint: Any) -> bool:
    return (value is None and hint is float) or fits(value, hint)
