"""Reads a section of the model config into a typed dataclass.

The dataclass is the documentation of the section: a field without default is a required key, a key without
field is an error. Faults are collected with their dotted keys, so that a user sees all of them at once. A
``__post_init__`` may raise ConfigError where values do not fit each other.

Keys are the field names in upper case, or in lower case where the dataclass says ``lower_keys = True``.
"""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pcdet_freeze.errors import ConfigError

S = TypeVar("S")
_BAD: Any = object()
_WORDS = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}


def read_settings(cls: type[S], values: object, where: str, faults: list[str]) -> S | None:
    """Return ``cls`` filled from the mapping ``values``, or None where something is wrong.

    ``where`` is the section's dotted key (``MODEL.BACKBONE_2D``); what is wrong is appended to ``faults``.
    """
    if not isinstance(values, Mapping):
        faults.append(f"{where} must be a section (a mapping of keys); got {values!r}")
        return None
    before = len(faults)
    fields = {_key_of(cls, field.name): field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    faults.extend(_unknown_keys(values, list(fields), where))
    found: dict[str, Any] = {}
    for key, field in fields.items():
        if key in values:
            found[field.name] = _convert(hints[field.name], values[key], f"{where}.{key}", faults)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            faults.append(f"{where}.{key} is required, but missing")
    if len(faults) > before:
        return None
    try:
        return cls(**found)
    except ConfigError as error:
        faults.append(f"{where}: {error}")
        return None


def raise_faults(faults: list[str]) -> None:
    """Raise one ConfigError that lists all of ``faults``; nothing happens where there are none."""
    if len(faults) == 1:
        raise ConfigError(faults[0])
    if faults:
        raise ConfigError("\n  - ".join([f"the model config has {len(faults)} faults:", *faults]))


def _key_of(cls: type, name: str) -> str:
    return name if getattr(cls, "lower_keys", False) else name.upper()


def _unknown_keys(values: Mapping[str, Any], known: list[str], where: str) -> list[str]:
    faults = []
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            faults.append(
                f"{where}.{key} is not a key of this section, or is not built (yet){hint} "
                f"Known keys: {', '.join(known) or '(none)'}"
            )
    return faults


def _convert(kind: Any, value: object, where: str, faults: list[str]) -> Any:
    """``value`` as ``kind``: scalar, dataclass, ``tuple[X, ...]``, ``dict[str, X]`` or ``X | None``."""
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        inner = [arg for arg in typing.get_args(kind) if arg is not type(None)]
        return None if value is None else _convert(inner[0], value, where, faults)
    if typing.get_origin(kind) is tuple:
        return _convert_list(typing.get_args(kind)[0], value, where, faults)
    if typing.get_origin(kind) is dict:
        return _convert_section(typing.get_args(kind)[1], value, where, faults)
    if dataclasses.is_dataclass(kind):
        return read_settings(kind, value, where, faults)  # type: ignore[arg-type]
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind is float and is_number:
        return float(value)  # type: ignore[arg-type]
    if isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
        return value
    faults.append(f"{where} must be {_WORDS[kind]}; got {value!r}")
    return _BAD


def _convert_section(kind: Any, value: object, where: str, faults: list[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        faults.append(f"{where} must be a section (a mapping of keys); got {value!r}")
        return {}
    return {str(key): _convert(kind, item, f"{where}.{key}", faults) for key, item in value.items()}


def _convert_list(kind: Any, value: object, where: str, faults: list[str]) -> tuple[Any, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        faults.append(f"{where} must be a list; got {value!r}")
        return ()
    return tuple(_convert(kind, item, f"{where}[{i}]", faults) for i, item in enumerate(value))
