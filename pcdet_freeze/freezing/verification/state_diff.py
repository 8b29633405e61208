"""Compare the frozen part of two state dicts, without a model (P7)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.entries.paths import segments_match
from pcdet_freeze.freezing.plan import FreezePlan
from pcdet_freeze.freezing.verification import digest
from pcdet_freeze.freezing.verification.certificate import bare_name, compare_digests, digests_of
from pcdet_freeze.utils.settings.names import nearest
from pcdet_freeze.utils.wrappers import AVERAGED, WRAPPER_CHILDREN


def compare_states(
    a: Mapping[str, Any], b: Mapping[str, Any], entries: Iterable[str], only: Iterable[str] | None = None
) -> list[str]:
    """Compare the frozen part of two ``state_dict`` mappings bit for bit, without a model (P7).

    Args:
        a: model state, also of a wrapped or compiled model: see :func:`plain_state`.
        b: model state to compare with ``a``.
        entries: as in the YAML, matched with the names of the keys.
        only: names of tensors (those of a certificate, say) to which the comparison is confined.

    Returns:
        One line for each tensor that changed, is missing in ``b`` or is new there; empty where all are equal.

    Raises:
        FreezeError: an entry that matches no key of either checkpoint.
    """
    left, right = plain_state(a), plain_state(b)
    keys, idle = select_keys(entries, list(dict.fromkeys([*left, *right])))
    refuse_idle(idle, [*left, *right])
    return compare_keys(left, right, keys if only is None else [key for key in keys if key in set(only)])


def plain_state(state: Mapping[str, Any]) -> dict[str, Any]:
    """A model state under the keys of the model without a wrapper around it, and without ``torch.compile``.

    ``module.`` and ``_orig_mod.`` are prefixes of a wrapper only where every key begins with them (apart from
    the ``n_averaged`` of AveragedModel, which is left out): else they belong to the name of a module. A
    segment ``_orig_mod`` stays where two keys would become one.
    """
    keys = {key: key for key in state}
    while rest := [key for key in keys.values() if key != AVERAGED]:
        if not any(all(key.startswith(f"{name}.") for key in rest) for name in WRAPPER_CHILDREN):
            break
        keys = {key: now.partition(".")[2] for key, now in keys.items() if now != AVERAGED}
    without = {
        key: ".".join(part for part in now.split(".") if part != "_orig_mod") for key, now in keys.items()
    }
    names = without if len(set(without.values())) == len(without) else keys
    return {name: state[key] for key, name in names.items()}


def compare_keys(a: Mapping[str, Any], b: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """As :func:`compare_states`, for plain states and these keys alone."""
    keys = list(keys)
    before, after = (_digests({key: state[key] for key in keys if key in state}) for state in (a, b))
    return compare_digests(before, after)


def _digests(state: Mapping[str, Any]) -> dict[str, str]:
    tensors = digests_of({key: value for key, value in state.items() if isinstance(value, torch.Tensor)})
    return {key: tensors.get(key) or digest.value_digest(value) for key, value in state.items()}


def select_keys(entries: Iterable[str], keys: Iterable[str]) -> tuple[list[str], list[str]]:
    """(the ``keys`` that the entries freeze, in their order; the entries that match none)."""
    keys = list(keys)
    chosen: set[str] = set()
    idle = []
    for entry in FreezePlan(tuple(entries)).entries:
        hit = _keys_of(entry, keys)
        idle += [] if hit else [entry]
        chosen = chosen - hit if entry.startswith("!") else chosen | hit
    return [key for key in keys if key in chosen], idle


def _keys_of(entry: str, keys: Iterable[str]) -> set[str]:
    """The ``keys`` in the modules that ``entry`` names: by their own names, else without wrappers."""
    owners = {key: key.rpartition(".")[0] for key in keys}
    name = entry.removeprefix("!")
    hit = {key for key, owner in owners.items() if segments_match(owner, name)}
    return hit or {key for key, owner in owners.items() if segments_match(bare_name(owner), bare_name(name))}


def refuse_idle(entries: Iterable[str], keys: Iterable[str]) -> None:
    """FreezeError with the nearest names for the ``entries``, which match no key, if there are any."""
    modules = dict.fromkeys(top for key in keys for top in _prefixes(key))
    faults = []
    for entry in entries:
        close = ", ".join(nearest(entry.removeprefix("!"), modules))
        known = (
            f"Nearest: {close}" if close else f"They contain {', '.join(m for m in modules if '.' not in m)}"
        )
        faults.append(f"{entry!r} names no module of either checkpoint. {known}")
    if faults:
        raise FreezeError("\n".join(faults))


def _prefixes(key: str) -> list[str]:
    parts = key.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]
