"""Rules for the values of a config section: what ``Annotated[type, rule]`` says of a field.

>>> @dataclass(frozen=True)
... class Loss(Section):
...     weight: Annotated[float, at_least(0)] = 1.0
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

Known = Collection[str] | Callable[[], Collection[str]]


@dataclass(frozen=True)
class Rule:
    """What a value must be; the whole phrase, which replaces the name of the type in a message."""

    text: str
    """follows "must be": ``a number above 0``"""
    test: Callable[[Any], bool] = lambda value: True
    """is asked for values of the right type only"""
    many: str = ""
    """what a list of such values is a list of: ``module names``"""
    advice: str = ""
    """what to write instead: ``[vfe, backbone_2d]``"""
    known: Known = ()
    """the values to choose from, for a hint at the nearest one"""
    most: int | None = None
    """an upper limit that ``text`` does not have, since only values beyond it need to know it"""

    def describe(self, value: object = None) -> str:
        """What a value must be; with the upper limit where ``value`` lies above it."""
        names = self.names()
        text = self.text or (f"one of {', '.join(names)}" if names else "one of (none)")
        beyond = self.most is not None and isinstance(value, int | float) and value > self.most
        return f"{text}, up to {self.most}" if beyond else text

    def names(self) -> Collection[str]:
        """The values to choose from, as they are now."""
        return self.known() if callable(self.known) else self.known


@dataclass(frozen=True)
class Key:
    """The key of a field whose name in upper case is not the key."""

    name: str


def above(limit: float) -> Rule:
    """A finite number above ``limit``."""
    return Rule(f"a number above {limit:g}", lambda value: limit < value < math.inf)


def at_least(limit: float) -> Rule:
    """A finite number that is not below ``limit``."""
    return Rule(f"a number, {limit:g} or more", lambda value: limit <= value < math.inf)


def between(low: float, high: float) -> Rule:
    """A number from ``low`` to ``high``, both included."""
    return Rule(f"a number from {low:g} to {high:g}", lambda value: low <= value <= high)


def whole(least: int, most: int = 10**9) -> Rule:
    """An integer from ``least`` to ``most``."""
    return at_most(most, f"a whole number, {least} or more", lambda value: value >= least)


def at_most(most: int, text: str, test: Callable[[Any], bool]) -> Rule:
    """What ``text`` and ``test`` say, up to ``most``, which a message names where a value lies above it."""
    return Rule(text, lambda value: test(value) and value <= most, most=most)


def one_of(known: Known) -> Rule:
    """One of the known names; a function is asked for them anew each time."""
    rule = Rule("", known=known if callable(known) else tuple(known))
    return dataclasses.replace(rule, test=lambda value: value in rule.names())


def only(value: object, why: str) -> Rule:
    """The only value that is built: ``only(False, "... is not implemented")``."""
    return Rule(f"{_literal(value)}: {why}", lambda found: found == value)


def length(number: int, text: str) -> Rule:
    """A list of ``number`` values, such as ``three numbers [x, y, z]``."""
    return Rule(text, lambda value: len(value) == number)


def not_empty(text: str, advice: str = "") -> Rule:
    """A list with one value or more, all different."""
    return Rule(text, lambda value: 0 < len(value) == len(set(value)), advice=advice)


Name = Annotated[str, Rule("a name", lambda value: bool(value.strip()), many="names")]
Count = Annotated[int, whole(1)]
Share = Annotated[float, between(0, 1)]
Length = Annotated[float, at_most(10**5, "a number above 0", lambda value: value > 0)]
"""metres, degrees and other amounts above 0"""
Weight = Annotated[float, at_most(10**6, "a number, 0 or more", lambda value: value >= 0)]
"""factor of a loss"""
Layers = Annotated[int, whole(0, 1000)]
"""layers of a block"""
Place = Annotated[float, between(-1e4, 1e4)]
"""a coordinate in metres: no sensor sees further than 10 km"""
Angle = Annotated[float, between(-2 * math.pi, 2 * math.pi)]
"""radians"""

_WORDS: dict[Any, tuple[str, str]] = {
    bool: ("true or false", "true or false"),
    int: ("an integer", "integers"),
    float: ("a number", "numbers"),
    str: ("a string", "strings"),
}


def describe(kind: Any) -> str:
    """What a value of the type ``kind`` must be: ``true, false or a list of names``."""
    words = _alternatives(kind)
    return " or ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _alternatives(kind: Any) -> list[str]:
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        rules = [arg for arg in args[1:] if isinstance(arg, Rule) and (arg.text or arg.known)]
        return [rules[-1].describe()] if rules else _alternatives(args[0])
    if is_union(kind):
        return [word for arg in args for word in _alternatives(arg)]
    if origin is Literal:
        return [_literal(arg) for arg in args]
    if origin is tuple:
        many = _many(args[0])
        return [f"a list of {many}" if many else "a list"]
    if kind is bool:
        return ["true", "false"]
    if kind is type(None):
        return ["null"]
    if kind in _WORDS:
        return [_WORDS[kind][0]]
    example = getattr(kind, "example", "")
    section = f"a section such as {example}" if example else "a section (a mapping of keys)"
    short = getattr(kind, "short_key", "")
    return [f"the {short.lower()} alone", section] if short else [section]


def _many(kind: Any) -> str:
    """What a list of ``kind`` is a list of; empty where there is no word for it."""
    if typing.get_origin(kind) is Annotated:
        found = [arg.many for arg in typing.get_args(kind)[1:] if isinstance(arg, Rule) and arg.many]
        return found[0] if found else _many(typing.get_args(kind)[0])
    if getattr(kind, "many", ""):
        return str(kind.many)
    return _WORDS[kind][1] if kind in _WORDS else ""


def advice_for(kind: Any, value: object, rules: Collection[Rule] = ()) -> str:
    """What to write instead of ``value``: ``": write [vfe]"``, or an empty string."""
    words = value.strip().strip("()[]").split(",") if isinstance(value, str) else []
    names = [word.strip().strip("'\"") for word in words if word.strip()]
    if names == ["None"] and kind is not str:
        return f": write {'[]' if _is_list(kind) else 'null'} (YAML reads None as a word)"
    if kind is str and isinstance(value, str) and set(value) & set("()"):
        return f": write {', '.join(names)} without parentheses (YAML has lists, no tuples)"
    if names and _is_list(kind):
        return f": write [{', '.join(names)}]"
    found = [rule.advice for rule in rules if rule.advice]
    return f": write {found[-1]}" if found else ""


def is_union(kind: Any) -> bool:
    """Whether ``kind`` is ``A | B`` or ``Optional[A]``."""
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def takes_names(kind: Any) -> bool:
    """Whether a value of ``kind`` may be a list of strings."""
    args = typing.get_args(kind)
    if typing.get_origin(kind) is Annotated or is_union(kind):
        return any(takes_names(arg) for arg in args if not isinstance(arg, Rule | Key))
    inner = typing.get_args(args[0])[0] if args and typing.get_origin(args[0]) is Annotated else args[:1]
    return typing.get_origin(kind) is tuple and (inner is str or inner == (str,))


def type_word(value: object) -> str:
    """The type of ``value`` in the words of a YAML: ``mapping`` for EasyDict and every other one."""
    return "mapping" if isinstance(value, Mapping) else type(value).__name__


def _is_list(kind: Any) -> bool:
    """Whether a value of ``kind`` may be a list, but not one of sections."""
    if typing.get_origin(kind) is Annotated:
        return _is_list(typing.get_args(kind)[0])
    if is_union(kind):
        return any(_is_list(arg) for arg in typing.get_args(kind))
    inner = typing.get_args(kind)[:1]
    return typing.get_origin(kind) is tuple and not dataclasses.is_dataclass(inner[0])


def _literal(value: object) -> str:
    words: Mapping[object, str] = {True: "true", False: "false"}
    return words[value] if isinstance(value, bool) else repr(value)
