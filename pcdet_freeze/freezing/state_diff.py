"""Compare the frozen part of two state dicts, without a model (P7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import digest
from pcdet_freeze.freezing.certificate import COUNTER, compare_digests
from pcdet_freeze.freezing.paths import segments_match
from pcdet_freeze.freezing.plan import FreezePlan
from pcdet_freeze.utils.names import nearest


def plain_key(key: str) -> str:
    """A ``state_dict`` key without what wrappers put before or into it."""
    while key.startswith("module."):
        key = key.removeprefix("module.")
    return ".".join(part for part in key.split(".") if part != "_orig_mod")


def compare_states(
    a: Mapping[str, Any], b: Mapping[str, Any], entries: Iterable[str], only: Iterable[str] | None = None
) -> list[str]:
    """Compare the frozen part of two ``state_dict`` mappings bit for bit, without a model (P7).

    Args:
        a, b: model states; prefixes of wrappers are seen through.
        entries: as in the YAML, matched with the names of the keys.
        only: names of tensors (those of a certificate, say) to which the comparison is confined.

    Returns:
        One line for each tensor that changed, is missing in ``b`` or is new there; empty where all are equal.

    Raises:
        FreezeError: an entry that matches no key of either state.
    """
    left, right = plain_state(a), plain_state(b)
    keys, idle = select_keys(entries, list(dict.fromkeys([*left, *right])))
    refuse_idle(idle, [*left, *right])
    return compare_keys(left, right, keys if only is None else [key for key in keys if key in set(only)])


verify_states = compare_states


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A model state under the keys that a model without wrappers has."""
    return {plain_key(key): value for key, value in state.items()}


def compare_keys(a: Mapping[str, Any], b: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """As :func:`compare_states`, for plain states and these keys alone."""
    keys = list(keys)
    before, after = ({key: _digest(state[key]) for key in keys if key in state} for state in (a, b))
    return compare_digests(before, after)


def _digest(value: Any) -> str:
    return digest.tensor_digest(value) if isinstance(value, torch.Tensor) else digest.value_digest(value)


def select_keys(entries: Iterable[str], keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the ``keys`` that the entries freeze, in their order; the entries that match none)."""
    keys = list(keys)
    chosen: set[str] = set()
    idle = []
    for entry in FreezePlan(tuple(entries)).entries:
        name = _plain_entry(entry)
        hit = {key for key in keys if segments_match(key.rpartition(".")[0], name)}
        idle += [] if hit else [entry]
        chosen = chosen - hit if entry.startswith("!") else chosen | hit
    return [key for key in keys if key in chosen and key.rpartition(".")[2] != COUNTER], idle


def refuse_idle(entries: Iterable[str], keys: Iterable[str]) -> None:
    """FreezeError with the nearest names for the ``entries``, which match no key, if there are any."""
    modules = dict.fromkeys(top for key in keys for top in _prefixes(key))
    faults = []
    for entry in entries:
        close = ", ".join(nearest(_plain_entry(entry), modules))
        known = f"Nearest: {close}" if close else f"They hold {', '.join(m for m in modules if '.' not in m)}"
        faults.append(f"{entry!r} names no module of either state. {known}")
    if faults:
        raise FreezeError("\n".join(faults))


def _plain_entry(entry: str) -> str:
    return plain_key(entry.removeprefix("!") + ".")[:-1]


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
