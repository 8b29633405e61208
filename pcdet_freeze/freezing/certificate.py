"""The proof that frozen state did not change (P1): a digest of each frozen tensor, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import CertificateError
from pcdet_freeze.freezing import digest
from pcdet_freeze.freezing.apply import locks_mode
from pcdet_freeze.freezing.paths import join, segments_match
from pcdet_freeze.freezing.state import FreezeRequest

VERSION = 1
COUNTER = "global_step"
"""The detector's own step counter, the one buffer that training may change anywhere."""


@dataclass(frozen=True)
class Certificate:
    """Digests of frozen state, by name (without wrapper prefixes)."""

    digests: dict[str, str] = field(default_factory=dict)
    """Name of a tensor (or ``path._extra_state``) -> ``dtype[shape]:hash``."""
    entries: tuple[str, ...] = ()
    """The freeze list as it was written."""
    names: tuple[str, ...] = ()
    """The outermost frozen modules that have any state."""
    hidden: tuple[str, ...] = ()
    """Names above that a ``state_dict`` does not hold (non-persistent buffers)."""
    algorithm: str = digest.ALGORITHM
    version: int = VERSION

    def to_plain(self) -> dict[str, Any]:
        """The certificate as a dict of str, int, list and dict only (loads with ``weights_only=True``)."""
        return {
            "version": self.version,
            "algorithm": self.algorithm,
            "entries": list(self.entries),
            "names": list(self.names),
            "hidden": list(self.hidden),
            "digests": dict(self.digests),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Certificate:
        """Read what :meth:`to_plain` wrote. Raises CertificateError for anything else."""
        if not isinstance(plain, Mapping) or not isinstance(plain.get("digests"), Mapping):
            raise CertificateError(f"a certificate must be a mapping with 'digests'; got {_short(plain)}")
        if plain.get("version") != VERSION or plain.get("algorithm") != digest.ALGORITHM:
            raise CertificateError(
                f"a certificate must be version {VERSION} by {digest.ALGORITHM}; got version "
                f"{plain.get('version')!r} by {plain.get('algorithm')!r}: take it anew with this version"
            )
        lists = [tuple(str(item) for item in plain.get(key, ())) for key in ("entries", "names", "hidden")]
        return cls({str(k): str(v) for k, v in plain["digests"].items()}, lists[0], lists[1], lists[2])


def _short(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 80 else text[:77] + '...'}"


def compare(before: Certificate, after: Certificate) -> list[str]:
    """What changed from one certificate to another, one line a tensor; empty where nothing did."""
    return compare_digests(before.digests, after.digests)


def compare_digests(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """One line for each name whose digest changed, went or came."""
    lines = []
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old is None:
            lines.append(f"{name} is new")
        elif new is None:
            lines.append(f"{name} is missing")
        elif old != new:
            lines.append(f"{name} changed{_how(old, new)}")
    return lines


def _how(old: str, new: str) -> str:
    before, after = old.rpartition(":")[0], new.rpartition(":")[0]
    return "" if before == after else f" from {before} to {after}"


def frozen_tensors(
    root: nn.Module, request: FreezeRequest, everything: bool = False
) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """(name, tensor, persistent) of the frozen state of ``claim`` in ``root``, extra states not among them.

    Args:
        everything: also what the certificate leaves out (the detector's counter, FREEZE.IGNORE).
    """
    for path, module, parent in request.module_set.modules(root):
        if request.plan.parameters:
            yield from ((join(path, n), p, True) for n, p in module._parameters.items() if p is not None)
        elif not locks_mode(request, path, module, parent):
            continue
        for name, buffer in module._buffers.items():
            if buffer is None:
                continue
            if everything or not _left_out(join(path, name), buffer, request.plan.ignore):
                yield join(path, name), buffer, name not in module._non_persistent_buffers_set


def certify(root: nn.Module, request: FreezeRequest) -> Certificate:
    """Take the certificate of what ``claim`` freezes in ``root``, as it is now."""
    digests: dict[str, str] = {}
    hidden = []
    for name, tensor, persistent in frozen_tensors(root, request):
        digests[name] = digest.tensor_digest(tensor)
        if not persistent:
            hidden.append(name)
    for name, module in extra_states(root, request):
        digests[name] = digest.value_digest(module.get_extra_state())
    names = tuple(
        top for top in request.module_set.names(root) if any(key.startswith(top + ".") for key in digests)
    )
    return Certificate(digests, request.plan.entries, names, tuple(hidden))


def extra_states(root: nn.Module, request: FreezeRequest) -> Iterator[tuple[str, nn.Module]]:
    """(``path._extra_state``, module) of the frozen modules that define ``get_extra_state``."""
    if not request.plan.parameters:
        return
    for path, module, _ in request.module_set.modules(root):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield join(path, "_extra_state"), module


def _left_out(name: str, buffer: torch.Tensor, ignore: tuple[str, ...]) -> bool:
    if name.rpartition(".")[2] == COUNTER and not buffer.is_floating_point() and buffer.numel() == 1:
        return True
    return any(segments_match(name, pattern) for pattern in ignore)
