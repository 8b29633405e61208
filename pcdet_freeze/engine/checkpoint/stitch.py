"""Join heads that were trained separately on one frozen trunk into one checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pcdet_freeze import __version__
from pcdet_freeze.engine.checkpoint.head_classes import KEY as HEAD_CLASSES
from pcdet_freeze.engine.checkpoint.head_classes import stored_classes
from pcdet_freeze.errors import CertificateError, CheckpointError
from pcdet_freeze.freezing import Certificate
from pcdet_freeze.freezing.entries.paths import segments_match
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.freezing.verification.certificate import COUNTER, compare_digests
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.freezing.verification.digest import tensor_digest
from pcdet_freeze.freezing.verification.state_diff import plain_state
from pcdet_freeze.utils.settings.names import nearest


@dataclass
class Source:
    """A checkpoint: its name for messages, its tensors, its certificate if it has one."""

    name: str
    state: dict[str, Tensor]
    """by plain name"""
    certificate: Certificate | None = None
    digests: dict[str, str] = field(default_factory=dict)
    """of all tensors but the step counter, and of those that only the certificate has (hidden buffers)"""
    head_classes: dict[str, list[str]] = field(default_factory=dict)
    """name of a dense head -> its classes"""

    @classmethod
    def of(cls, name: str, checkpoint: Mapping[str, Any]) -> Source:
        """From a loaded checkpoint; CertificateError where it is not what its own certificate says."""
        state = plain_state(trained_weights(checkpoint))
        digests = {key: tensor_digest(value) for key, value in state.items() if key != COUNTER}
        stored = ((checkpoint.get(CHECKPOINT_KEY) or {}).get("freeze") or {}).get("certificate")
        certificate = None if stored is None else Certificate.from_plain(stored).renamed(state)
        if certificate is not None:
            certified = {key: value for key, value in certificate.digests.items() if key in digests}
            changed = compare_digests(certified, {key: digests[key] for key in certified})
            if changed:
                raise CertificateError(
                    f"{name} must be what its own certificate says, but differs in:\n"
                    + _listing(changed)
                    + "\nThe file was changed after it was written; use another file."
                )
            digests = {**certificate.digests, **digests}
        return cls(name, state, certificate, digests, stored_classes(checkpoint))

    def keys_of(self, entries: Sequence[str]) -> list[str]:
        """Tensors of the modules that ``entries`` name; CheckpointError for an entry that names none."""
        modules = {key: key.rpartition(".")[0] for key in self.state}
        chosen: list[str] = []
        for entry in entries:
            hit = [key for key, module in modules.items() if segments_match(module, entry)]
            if not hit:
                known = {top for module in modules.values() for top in _prefixes(module)}
                raise CheckpointError(
                    f"--take must name modules of {self.name}, but it has no {entry!r}. Nearest: "
                    f"{', '.join(nearest(entry, known)) or 'none'}"
                )
            chosen += hit
        return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Take:
    """What to take from a source."""

    source: Source
    entries: tuple[str, ...]


def stitch(trunk: Source, takes: Sequence[Take]) -> tuple[dict[str, Any], list[str]]:
    """A checkpoint of ``trunk`` with the parts of ``takes``, and lines that list its parts.

    The trunk is every tensor that is not taken. It must be equal in every source, bit for bit, since the
    heads were trained on its features. A head (or other outermost module) that a source does not have at all
    is not compared.

    Raises:
        CheckpointError: the trunks differ (with the tensors), two takes of one tensor, an unknown entry.
    """
    taken = _check_disjoint(takes)
    shared = _shared(trunk, takes, taken)
    faults = [line for take in takes for line in _differences(shared, trunk, take.source)]
    if faults:
        raise CheckpointError(
            "Heads can be joined only if they were trained on the same trunk, but these tensors differ from "
            f"{trunk.name}:\n{_listing(faults)}\nTrain each head from {trunk.name} with all of the trunk in "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK, or name what differs in --take."
        )
    state = {key: value for key, value in trunk.state.items() if key not in taken}
    for key, take in taken.items():
        state[key] = take.source.state[key]
    modules = tuple(dict.fromkeys(key.partition(".")[0] for key in shared))
    certificate = Certificate(shared, modules, modules, tuple(key for key in shared if key not in state))
    ours = {
        "freeze": {"entries": list(certificate.entries), "certificate": certificate.to_plain()},
        HEAD_CLASSES: _head_classes(trunk, taken),
    }
    checkpoint = {"epoch": 0, "it": 0, "model_state": state, "optimizer_state": None, CHECKPOINT_KEY: ours}
    return {**checkpoint, "version": f"pcdet_freeze+{__version__}"}, _report(trunk, takes, taken)


def _head_classes(trunk: Source, taken: Mapping[str, Take]) -> dict[str, list[str]]:
    """Name -> classes of each dense head, of the source that its tensors are from."""
    owner = {key.partition(".")[0]: take.source for key, take in taken.items()}
    own = {head: classes for head, classes in trunk.head_classes.items() if head not in owner}
    return own | {head: s.head_classes[head] for head, s in owner.items() if head in s.head_classes}


def _check_disjoint(takes: Sequence[Take]) -> dict[str, Take]:
    """Tensor -> where it is taken from."""
    taken: dict[str, Take] = {}
    for take in takes:
        for key in take.source.keys_of(take.entries):
            other = taken.setdefault(key, take)
            if other.source is not take.source:
                raise CheckpointError(
                    f"A tensor can be taken from one checkpoint only, but {key} is taken from "
                    f"{other.source.name} and {take.source.name}"
                )
    return taken


def _shared(trunk: Source, takes: Sequence[Take], taken: Mapping[str, Take]) -> dict[str, str]:
    """Digests that every source must have: the trunk's, and buffers that only certificates list."""
    shared = dict(trunk.digests)
    for take in takes:
        hidden = {key: value for key, value in take.source.digests.items() if key not in take.source.state}
        shared = {**hidden, **shared}
    return {key: value for key, value in shared.items() if key not in taken}


def _differences(shared: Mapping[str, str], trunk: Source, source: Source) -> list[str]:
    """One line for each of the ``shared`` tensors that differs in ``source``, or is missing there."""
    own = {key.partition(".")[0] for key in source.digests}
    compared = {
        key: digest
        for key, digest in shared.items()
        if key in source.digests or (key in trunk.state and key.partition(".")[0] in own)
    }
    lines = compare_digests(compared, {key: source.digests[key] for key in compared if key in source.digests})
    return [f"{source.name}: {line}" for line in lines]


def _report(trunk: Source, takes: Sequence[Take], taken: Mapping[str, Take]) -> list[str]:
    kept = sum(key not in taken for key in trunk.state)
    names = ", ".join(dict.fromkeys(take.source.name for take in takes))
    lines = [f"{kept} tensors of {trunk.name}, the same in {names}"]
    for take in takes:
        keys = [key for key, owner in taken.items() if owner is take]
        lines.append(f"{len(keys)} tensors of {take.source.name}: {', '.join(take.entries)}")
        replaced = sum(
            trunk.digests.get(key, take.source.digests[key]) != take.source.digests[key] for key in keys
        )
        if replaced:
            lines.append(f"  {replaced} of them replace different tensors of {trunk.name}")
        left = [key for key in take.source.state if key not in taken and key not in trunk.state]
        if left:
            modules = ", ".join(dict.fromkeys(".".join(key.split(".")[:2]) for key in left))
            lines.append(
                f"  note: {len(left)} tensors stay behind in it, and are in no other part: {modules}"
            )
        if take.source.certificate is None:
            lines.append("  note: it has no certificate; its tensors were compared, not its hidden buffers")
    return lines


def _prefixes(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _listing(lines: Sequence[str], limit: int = 40) -> str:
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join(f"  {line}" for line in [*lines[:limit], *more])
