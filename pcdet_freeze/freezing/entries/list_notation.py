"""Lists of module names in other notations than ``[vfe]``: one name alone, ``vfe``, and ``vfe.`` with a dot.

``--set`` takes one name without brackets, so a YAML and :func:`pcdet_freeze.freeze` do too. Code that froze
modules by a prefix of their parameters' names wrote the dot. Each change is a note.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_WORDS = frozenset({"none", "null", "true", "false", "yes", "no", "on", "off"})
"""words that mean a value, in YAML or in Python, in the place of a list"""


def read_notation(value: Any, where: str, notes: list[str]) -> Any:
    """A list of names in its usual notation; anything else as it is, for the reader of the section.

    Args:
        value: what stands in the config: a list of names, or one name.
        where: its dotted key, for the notes.
        notes: a line is added for each change.
    """
    if isinstance(value, str) and _is_one_name(value):
        notes.append(f"{where}: {value!r} is read as the list [{value.strip()}]")
        value = [value.strip()]
    if not isinstance(value, list | tuple):
        return value
    return [_without_dot(item, where, notes) for item in value]


def read_keys(model: Mapping[str, Any], key: str, block: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The section MODEL with every list of module names in its usual notation, and the notes.

    Args:
        model: the section.
        key: the key of the list.
        block: the key of the section with the options.
    """
    notes: list[str] = []
    found = dict(model)
    _read_lists(found, (key,), "MODEL", notes)
    options = found.get(block)
    if isinstance(options, Mapping):
        found[block] = options = dict(options)
        _read_lists(options, ("EVAL", "ALLOW_RANDOM", "IGNORE"), block, notes)
        phases = options.get("SCHEDULE")
        if isinstance(phases, list | tuple):
            options["SCHEDULE"] = [_phase(p, f"{block}.SCHEDULE[{i}]", notes) for i, p in enumerate(phases)]
    return found, tuple(notes)


def _phase(phase: Any, where: str, notes: list[str]) -> Any:
    if not isinstance(phase, Mapping):
        return phase
    found = dict(phase)
    _read_lists(found, ("TRAIN",), where, notes)
    return found


def _read_lists(section: dict[str, Any], keys: Iterable[str], where: str, notes: list[str]) -> None:
    for key in keys:
        if key in section:
            section[key] = read_notation(section[key], f"{where}.{key}", notes)


def _is_one_name(text: str) -> bool:
    name = text.strip().removeprefix("!")
    return (
        bool(name)
        and not set(name) & set(",()'\"")
        and not (name.startswith("[") and name.endswith("]"))
        and name.lower() not in _WORDS
    )


def _without_dot(item: Any, where: str, notes: list[str]) -> Any:
    name = item.removesuffix(".") if isinstance(item, str) else ""
    if name in ("", "!", item):
        return item
    notes.append(f"{where}: {item!r} is read as {name!r}")
    return name
