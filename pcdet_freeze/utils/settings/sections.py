"""The one reader of config sections: a mapping -> a frozen dataclass, with every fault at once.

The dataclass is the documentation of the section. A field is a key (its name in upper case, or in lower case
where the class says ``lower_keys = True``); its type says what the value must be, ``Annotated[type, rule]``
more of it (see :mod:`.rules`); a field without default is a required key; a key without field is an error.

>>> @dataclass(frozen=True)
... class Optim(Section):
...     lr: Annotated[float, above(0)]
...     use_amp: bool = False
>>> read_section(Optim, {"LR": 0, "AMP": True}, "OPTIMIZATION")[1]
['OPTIMIZATION.AMP is not a key ...; did you mean USE_AMP?...', 'OPTIMIZATION.LR must be a number above 0...']

A fault is one line that begins with the dotted key, so that file and line of the key can be put before it.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pcdet_freeze.errors import ConfigError, PCDetFreezeError
from pcdet_freeze.utils.settings.names import did_you_mean
from pcdet_freeze.utils.settings.rules import Key, Rule, advice_for, describe, is_union, type_word

S = TypeVar("S")
C = TypeVar("C", bound=type)
SETTABLE: dict[str, list[type]] = {}
"""section -> its dataclasses whose optional keys ``--set`` may add"""


class Section:
    """Base of a section's dataclass. A dataclass without this base is read too, with these defaults."""

    lower_keys: ClassVar[bool] = False
    """keys are the field names as they are, not in upper case"""
    other_keys: ClassVar[bool] = False
    """keys without a field are somebody else's, no error"""
    not_built: ClassVar[Collection[str]] = ()
    """keys of OpenPCDet's that may be there with a value that turns them off"""
    short_key: ClassVar[str] = ""
    """the key that a string in the place of the whole section stands for"""
    example: ClassVar[str] = ""
    """how the section is written"""

    def faults(self) -> Iterable[str]:
        """What is wrong with values that are right by themselves; each fault begins with a key."""
        return ()

    @classmethod
    def required(cls, values: Mapping[str, Any]) -> Mapping[str, str]:
        """Keys with a default that ``values`` must have nevertheless -> why (``" for OPTIMIZER adam"``)."""
        return {}


@dataclass(frozen=True)
class Field:
    """A field of a section's dataclass."""

    name: str
    kind: Any
    """its type, with the rules"""
    default: Any
    """MISSING where the key is required"""


def settable(where: str) -> Callable[[C], C]:
    """Class decorator: ``--set`` may add the optional keys of this dataclass to the section ``where``."""

    def add(cls: C) -> C:
        SETTABLE.setdefault(where, []).append(cls)
        return cls

    return add


@cache
def fields_of(cls: type) -> dict[str, Field]:
    """Key -> field of a section's dataclass."""
    origin: Any = typing.get_origin(cls) or cls
    hints, found = typing.get_type_hints(origin, include_extras=True), {}
    types = dict(zip(getattr(origin, "__parameters__", ()), typing.get_args(cls), strict=False))
    for field in dataclasses.fields(origin):
        kind = types.get(hints[field.name], hints[field.name])
        keys = [extra.name for extra in typing.get_args(kind)[1:] if isinstance(extra, Key)]
        name = field.name if _of(cls, "lower_keys") else field.name.upper()
        made = field.default_factory is not dataclasses.MISSING
        default = None if made else field.default
        found[keys[0] if keys else name] = Field(field.name, kind, default)
    return found


def read_section(
    cls: type[S], values: object, where: str, *, partial: bool = False
) -> tuple[S | None, list[str]]:
    """Read the mapping ``values`` into ``cls``.

    Args:
        cls: a dataclass, a :class:`Section` or a plain one.
        where: the section's dotted key (``MODEL.BACKBONE_2D``), empty for a whole config.
        partial: only check the keys that are there; nothing is made.

    Returns:
        (the section, None where something is wrong or it is ``partial``; every fault).
    """
    faults: list[str] = []
    found = _section(cls, values, where, faults, partial)
    return (None if faults else found), faults


def read_named(
    find: Callable[[str], Any], values: object, where: str
) -> tuple[tuple[Any, Any] | None, list[str]]:
    """Read a section whose NAME chooses a class: ((class, settings), every fault).

    ``find`` gives the class of a NAME, or raises ConfigError. ``Settings`` of the class is the dataclass of
    its other keys; without one the settings are the section as it is.
    """
    if not isinstance(values, Mapping) or not isinstance(values.get("NAME"), str):
        return None, [f"{where} must be a section with a NAME (a string); got {values!r}"]
    try:
        cls = find(values["NAME"])
    except ConfigError as error:
        return None, [f"{where}.NAME: {error}"]
    kind = getattr(cls, "Settings", None)
    if kind is None:
        return (cls, values), []
    rest = {key: value for key, value in values.items() if key != "NAME"}
    settings, faults = read_section(kind, rest, where)
    return (None if faults else (cls, settings)), faults


def _of(cls: type, name: str) -> Any:
    return getattr(cls, name, getattr(Section, name))


def _join(where: str, key: object) -> str:
    return f"{where}.{key}" if where else str(key)


def _section(cls: Any, values: object, where: str, faults: list[str], partial: bool = False) -> Any:
    if isinstance(values, str) and _of(cls, "short_key"):
        values = {_of(cls, "short_key"): values}
    if not isinstance(values, Mapping):
        faults.append(f"{where} must be {describe(cls)}; got {values!r}{advice_for(cls, values)}")
        return None
    before, fields = len(faults), fields_of(cls)
    faults += _unknown_keys(cls, values, where)
    if not partial:
        faults += _missing_keys(cls, values, where)
    found = {
        field.name: _read_field(field, values[key], _join(where, key), faults)
        for key, field in fields.items()
        if key in values
    }
    if len(faults) > before or partial:
        return None
    try:
        section = cls(**found)
    except PCDetFreezeError as error:  # of the __post_init__ of somebody's own dataclass
        faults.append(f"{where}: {error}")
        return None
    faults += [_join(where, fault) for fault in (section.faults() if isinstance(section, Section) else ())]
    return section


def _unknown_keys(cls: Any, values: Mapping[str, Any], where: str) -> list[str]:
    known, faults, holder = list(fields_of(cls)), [], "this section" if where else "a config"
    for key, value in values.items():
        if key in known or (key in _of(cls, "not_built") and not value):
            continue
        if key in _of(cls, "not_built"):
            faults.append(f"{_join(where, key)} is not implemented: set it to False, or remove it")
        elif not _of(cls, "other_keys"):
            faults.append(
                f"{_join(where, key)} is not a key of {holder}, or is not implemented"
                f"{did_you_mean(key, known)} (known: {', '.join(known) or 'none'})"
            )
    return faults


def _missing_keys(cls: Any, values: Mapping[str, Any], where: str) -> list[str]:
    needed = [key for key, field in fields_of(cls).items() if field.default is dataclasses.MISSING]
    # null turns an optional key off, which those of required() are not
    why = {key: "" for key in needed if key not in values}
    why |= {key: reason for key, reason in _of(cls, "required")(values).items() if values.get(key) is None}
    example = _of(cls, "example")
    advice = f": write {example}" if example else ""
    return [f"{_join(where, key)} is required{reason}, but missing{advice}" for key, reason in why.items()]


def _read_field(field: Field, value: object, where: str, faults: list[str]) -> Any:
    """Convert one value; null stands for the default of a list."""
    if value is None and isinstance(field.default, tuple):
        return field.default
    return _convert(field.kind, value, where, faults)


def _convert(kind: Any, value: object, where: str, faults: list[str], rules: tuple[Rule, ...] = ()) -> Any:
    """``value`` as ``kind``: scalar, Literal, section, ``tuple[X, ...]``, ``dict[str, X]``, ``X | Y``."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return _checked(kind, value, where, faults, rules)
    if is_union(kind):
        return _convert_union(kind, value, where, faults, rules)
    if origin is tuple:
        return _convert_list(kind, value, where, faults, rules)
    if origin is dict:
        return _convert_mapping(args[1], value, where, faults)
    if dataclasses.is_dataclass(origin or kind):
        return value if isinstance(value, origin or kind) else _section(kind, value, where, faults)
    if kind is Any or ((kind is Mapping or origin is Mapping) and isinstance(value, Mapping)):
        return value
    if origin is Literal:
        fits = any(value == known and type(value) is type(known) for known in args)
    else:
        fits = _is_a(kind, value)
    if fits:
        return float(value) if kind is float else value  # type: ignore[arg-type]
    hint = did_you_mean(value, args) if origin is Literal and isinstance(value, str) else ""
    text = _text(kind, rules)
    faults.append(f"{where} must be {text}; got {value!r}{advice_for(kind, value, rules)}{hint}")
    return None


def _is_finite(value: int | float) -> bool:
    """Whether ``value`` is no NaN and no inf, and fits into 64 bits where it is an integer."""
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 2**63


def _is_a(kind: Any, value: object) -> bool:
    if kind is float or kind is int:
        number = isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)
        return number and (kind is float or isinstance(value, int))
    return isinstance(value, kind) if isinstance(kind, type) else False


def _checked(kind: Any, value: object, where: str, faults: list[str], rules: tuple[Rule, ...]) -> Any:
    """A value with its rules: first those of its type, then each rule, until one does not hold."""
    inner, *extras = typing.get_args(kind)
    own = tuple(extra for extra in extras if isinstance(extra, Rule))
    before = len(faults)
    found = _convert(inner, value, where, faults, (*rules, *own))
    for rule in own:
        if len(faults) == before and not rule.test(found):
            hint = did_you_mean(found, rule.names()) if isinstance(found, str) else ""
            advice = advice_for(inner, value, (*rules, rule))
            faults.append(f"{where} must be {rule.describe(value)}; got {value!r}{advice}{hint}")
    return found


def _convert_union(kind: Any, value: object, where: str, faults: list[str], rules: tuple[Rule, ...]) -> Any:
    args = typing.get_args(kind)
    if value is None and type(None) in args:
        return None
    found: list[list[str]] = []
    choices = [arg for arg in args if arg is not type(None)]
    word = isinstance(value, str) and value == "None" and type(None) in args
    for choice in () if word else choices:
        local: list[str] = []
        result = _convert(choice, value, where, local, rules)
        if not local:
            return result
        found.append(local)
    nested = [local for local in found if any(not fault.startswith(f"{where} ") for fault in local)]
    if nested or (len(choices) == 1 and found):
        faults += nested[0] if nested else found[0]  # what is wrong inside says more
    else:
        faults.append(f"{where} must be {describe(kind)}; got {value!r}{advice_for(kind, value, rules)}")
    return None


def _convert_mapping(kind: Any, value: object, where: str, faults: list[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        faults.append(f"{where} must be a section (a mapping of keys); got {value!r}")
        return {}
    return {str(key): _convert(kind, item, f"{where}.{key}", faults) for key, item in value.items()}


def _convert_list(kind: Any, value: object, where: str, faults: list[str], rules: tuple[Rule, ...]) -> Any:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        got = f"{type_word(value)} {value!r}"
        faults.append(f"{where} must be {_text(kind, rules)}; got {got}{advice_for(kind, value, rules)}")
        return ()
    passed = tuple(Rule(text="", advice=rule.advice) for rule in rules if rule.advice)
    inner = typing.get_args(kind)[0]
    return tuple(_convert(inner, item, f"{where}[{i}]", faults, passed) for i, item in enumerate(value))


def _text(kind: Any, rules: tuple[Rule, ...]) -> str:
    """What a value must be, by the innermost of the rules, else by its type."""
    own = [rule for rule in rules if rule.text or rule.known]
    return own[-1].describe() if own else describe(kind)
