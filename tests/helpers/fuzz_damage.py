"""Damage to bytes, texts and nested values, from a seeded generator."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np

JUNK = (None, "", "x", "../../x", -1, 0, 2**70, 1e300, float("nan"), float("inf"), True, [], {}, [1], [[]],
        {"NAME": {}}, "[", np.nan, np.zeros((2, 2)), np.array(["x"]), np.float32(1e30))  # fmt: skip
WORDS = (
    "nan",
    "inf",
    "-1",
    "1e400",
    "1e30",
    "x",
    "",
    "0",
    "1_0",
    "٣",
    "../x",
    "DontCare",
    "-",
    "1e-16",
    "\x00",
)
Random = np.random.RandomState


def damaged_bytes(raw: bytes, rng: Random) -> bytes:
    """``raw`` with some bytes changed, cut off, repeated or inserted."""
    data, way = bytearray(raw), rng.randint(6)
    at = rng.randint(max(len(data), 1))
    if way == 0:
        return bytes(data[:at])
    if way == 1:
        return bytes(data[:at]) + rng.bytes(rng.randint(1, 64)) + bytes(data[at:])
    if way == 2:
        return rng.bytes(rng.randint(0, 400))
    if way == 3:
        return bytes(data[at:]) + bytes(data[:at])
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randint(len(data))] = rng.randint(256)
    return bytes(data)


def damaged_text(text: str, rng: Random) -> str:
    """``text`` with words or lines exchanged, dropped or repeated."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 4)):
        at, way = rng.randint(len(lines)), rng.randint(6)
        words = lines[at].split(" ")
        if way == 0:
            lines.pop(at)
        elif way == 1:
            lines.insert(at, lines[rng.randint(len(lines))])
        elif way == 2:
            lines[at] = " " * rng.randint(4) + lines[at]
        elif way == 3 and lines[at]:
            place = rng.randint(len(lines[at]))
            lines[at] = (
                lines[at][:place]
                + chr(rng.choice([9, 7, 34, 42, 58, 91, 123, 200, 0x2028]))
                + lines[at][place:]
            )
        else:
            words[rng.randint(len(words))] = WORDS[rng.randint(len(WORDS))]
            lines[at] = " ".join(words)
        lines = lines or [""]
    return "\n".join(lines) + "\n"


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from nodes(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at ``path``."""
    for key in path:
        value = value[key]
    return value


def damaged_tree(value: Any, rng: Random) -> Any:
    """A copy of ``value`` with one or two of its parts exchanged for junk, dropped or damaged within."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        paths = list(nodes(value))
        if not paths:
            return value
        path = paths[rng.randint(len(paths))]
        parent, key = at(value, path[:-1]), path[-1]
        if rng.randint(4) == 0 and isinstance(parent, dict):
            del parent[key]
        elif (
            isinstance(parent[key], np.ndarray)
            and parent[key].dtype.kind == "f"
            and parent[key].size
            and rng.randint(2)
        ):
            bad = np.array([np.nan, np.inf, 1e300, -1, 0, 1e-16, 1e6], np.float64)
            with np.errstate(all="ignore"):
                parent[key].flat[rng.randint(parent[key].size)] = bad[rng.randint(len(bad))]
        else:
            parent[key] = JUNK[rng.randint(len(JUNK))]
    return value
