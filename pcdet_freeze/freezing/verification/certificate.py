"""Certificate of frozen state (P1): a digest of each frozen tensor, as plain data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from pcdet_freeze.errors import CertificateError
from pcdet_freeze.freezing.apply import locks_mode
from pcdet_freeze.freezing.entries.paths import join, segments_match, state_name
from pcdet_freeze.freezing.state import FreezeRequest
from pcdet_freeze.freezing.verification import digest
from pcdet_freeze.utils.wrappers import WRAPPER_CHILDREN

VERSION = 2
"""Names are those of ``state_dict``."""
OLD_VERSION = 1
"""Names lack every segment ``module`` or ``_orig_mod`` of an only child, whatever its parent's class."""
COUNTER = "global_step"
"""The detector's own step counter. No entry can freeze it: entries name modules inside the detector."""


@dataclass(frozen=True)
class Certificate:
    """Digests of frozen state, by the name that ``state_dict`` of the unwrapped model gives it."""

    digests: dict[str, str] = field(default_factory=dict)
    """Name of a tensor (or ``path._extra_state``) -> ``dtype[shape]:hash``."""
    entries: tuple[str, ...] = ()
    """The freeze list as it was written."""
    names: tuple[str, ...] = ()
    """The outermost frozen modules that have any state."""
    hidden: tuple[str, ...] = ()
    """Names that a ``state_dict`` does not contain (non-persistent buffers)."""
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
        version = plain.get("version")
        if version not in (OLD_VERSION, VERSION) or plain.get("algorithm") != digest.ALGORITHM:
            raise CertificateError(
                f"a certificate must be version {OLD_VERSION} or {VERSION} by {digest.ALGORITHM}; got "
                f"version {version!r} by {plain.get('algorithm')!r}: compute it again with this version"
            )
        lists = [tuple(str(item) for item in plain.get(key, ())) for key in ("entries", "names", "hidden")]
        digests = {str(k): str(v) for k, v in plain["digests"].items()}
        return cls(digests, lists[0], lists[1], lists[2], version=version)

    def matches(self, names: Collection[str]) -> dict[str, str]:
        """Those of ``names`` that this certificate covers -> the name that it has here.

        Args:
            names: state names of one model or checkpoint. Two of them may have one name in a certificate of
                the old version.
        """
        return match_names(names, self.digests, self.version == OLD_VERSION)

    def renamed(self, names: Collection[str]) -> Certificate:
        """This certificate with its tensors named as in ``names``; a name without a match stays.

        Where two tensors of a module and its only child ``module`` have one name in a certificate of the old
        version, its digest is the child's: it was written last. The other tensor has no digest here.
        """
        found = self.matches(names)
        now = {was: name for name, was in sorted(found.items(), key=lambda pair: pair[0].count("."))}
        digests = {now.get(name, name): value for name, value in self.digests.items()}
        return replace(self, digests=digests, hidden=tuple(now.get(name, name) for name in self.hidden))


def match_names(names: Collection[str], known: Collection[str], old: bool = False) -> dict[str, str]:
    """Those of ``names`` that mean a tensor in ``known`` -> its name there.

    Names may differ by segments of wrappers, where a part was wrapped or compiled since.

    Args:
        old: ``known`` are names in a certificate of the old version.
    """
    found: dict[str, str] = {}
    now, then, shorter = _by_bare_name(names), _by_bare_name(known), _OldNames(names) if old else None
    for bare, group in now.items():
        if len(group) == len(then[bare]):
            found |= dict(zip(group, then[bare], strict=True))
            continue
        pairs = {name: name if name in known or shorter is None else shorter.name_of(name) for name in group}
        found |= {name: was for name, was in pairs.items() if was in known}
    return found


class _OldNames:
    """What certificates of the old version called the tensors of a model with these state names."""

    def __init__(self, names: Collection[str]) -> None:
        self._children: dict[str, set[str]] = defaultdict(set)
        for name in names:
            segments = name.split(".")
            for count in range(len(segments) - 1):
                self._children[".".join(segments[:count])].add(segments[count])

    def name_of(self, name: str) -> str:
        """``name`` without the segments of only children that have a wrapper's name for it."""
        segments = name.split(".")
        return ".".join(
            segment
            for count, segment in enumerate(segments)
            if not (segment in WRAPPER_CHILDREN and self._children[".".join(segments[:count])] == {segment})
        )


def _by_bare_name(names: Collection[str]) -> dict[str, list[str]]:
    """``names`` by :func:`bare_name`, each list from the outermost tensor to the innermost."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names, key=lambda name: (name.count("."), name)):
        found[bare_name(name)].append(name)
    return found


def bare_name(name: str) -> str:
    """``name`` without all segments that wrappers may have added."""
    return ".".join(part for part in name.split(".") if part not in WRAPPER_CHILDREN)


def _short(value: object) -> str:
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 80 else text[:77] + '...'}"


def compare(before: Certificate, after: Certificate) -> list[str]:
    """What changed from one certificate to another, one line a tensor; empty where nothing did.

    ``before`` may be of the old version, which leaves out every ``global_step`` and, of two tensors with one
    name, the first: those tensors are not compared.
    """
    covered = before.matches(after.digests)
    if before.version == OLD_VERSION:
        left_out = {name for name in after.digests if name.rpartition(".")[2] == COUNTER} - set(covered)
        before = before.renamed(after.digests)
        left_out |= set(covered) - set(before.digests)
        now = {name: value for name, value in after.digests.items() if name not in left_out}
        return compare_digests(before.digests, now)
    return compare_digests(before.renamed(after.digests).digests, after.digests)


def compare_digests(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """One line for each name whose digest changed, is missing or is new."""
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
    root: nn.Module, request: FreezeRequest, with_ignored: bool = False
) -> Iterator[tuple[str, torch.Tensor, bool]]:
    """(state name, tensor, persistent) of the state that ``request`` freezes in ``root``, no extra states.

    Args:
        with_ignored: also the buffers that FREEZE.IGNORE leaves out of the certificate.
    """
    for path, module, parent in request.module_set.modules(root):
        top = state_name(root, path)
        if request.plan.parameters:
            yield from ((join(top, n), p, True) for n, p in module._parameters.items() if p is not None)
        elif not locks_mode(request, path, module, parent):
            continue
        for name, buffer in module._buffers.items():
            ignored = any(segments_match(join(path, name), pattern) for pattern in request.plan.ignore)
            if buffer is not None and (with_ignored or not ignored):
                yield join(top, name), buffer, name not in module._non_persistent_buffers_set


def certify(root: nn.Module, request: FreezeRequest) -> Certificate:
    """Take the certificate of what ``request`` freezes in ``root``, as it is now."""
    found = list(frozen_tensors(root, request))
    hidden = [name for name, _, persistent in found if not persistent]
    digests = digests_of({name: tensor for name, tensor, _ in found})
    for name, module in extra_states(root, request):
        digests[name] = digest.value_digest(module.get_extra_state())
    names = tuple(
        path
        for path in request.module_set.names(root)
        if any(key.startswith(state_name(root, path) + ".") for key in digests)
    )
    return Certificate(digests, request.plan.entries, names, tuple(hidden))


def digests_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The digest of each tensor, by its name."""
    return dict(zip(tensors, digest.tensor_digests(list(tensors.values())), strict=True))


def extra_states(root: nn.Module, request: FreezeRequest) -> Iterator[tuple[str, nn.Module]]:
    """(``path._extra_state``, module) of the frozen modules that define ``get_extra_state``."""
    if not request.plan.parameters:
        return
    for path, module, _ in request.module_set.modules(root):
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            yield join(state_name(root, path), "_extra_state"), module
