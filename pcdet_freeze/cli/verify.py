"""The command ``verify``; its flags and help: ``arguments/verify.py``."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing import Certificate, FreezePlan
from pcdet_freeze.freezing.entries.paths import segments_match
from pcdet_freeze.freezing.layer_types import RUNNING_BUFFERS
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.freezing.verification.checkpoint_meta import FreezeMetadata
from pcdet_freeze.freezing.verification.state_diff import compare_keys, plain_state, refuse_idle, select_keys
from pcdet_freeze.utils.terminal import Color, columns, paint, wrap
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

EQUAL, CHANGED, CANNOT_TELL = 0, 1, 2
ERROR_CODE = CANNOT_TELL
AVERAGES = "compared with the averages (OPTIMIZATION.EMA) of {file}, from which a later stage begins"
STATISTICS = (*RUNNING_BUFFERS, "num_batches_tracked")


def run(args: argparse.Namespace) -> int:
    """Print what changed in the frozen state; returns the exit code."""
    files = [load_checkpoint(path, args.trust_checkpoint) for path in (args.before, args.after)]
    scope = scope_of(args, *(FreezeMetadata.of(file) for file in files))
    before, after = (plain_state(file["model_state"]) for file in files)
    keys = scope.choose(dict.fromkeys([*before, *after]))
    changed = compare_keys(before, after, keys)
    averages = plain_state(trained_weights(files[0]))
    if changed and compare_keys(before, averages, keys):
        changed = compare_keys(averages, after, keys)
        scope.notes += (AVERAGES.format(file=args.before),)
    named = scope.text
    if changed:
        _print(f"CHANGED: {len(changed)} of the {len(keys)} stored tensors of {named}:", "red")
        print("\n".join(f"  {line}" for line in changed))
    else:
        _print(f"EQUAL: {len(keys)} stored tensors of {named} are the same, bit for bit.", "green")
    for line in scope.notes:
        _print(f"note: {line}")
    _print(f"Not compared, because a checkpoint does not contain it: {scope.unseen}.")
    return CHANGED if changed else EQUAL


def _print(text: str, color: Color | None = None) -> None:
    """Print ``text`` in lines that fit the terminal, its first word in ``color``."""
    first, *rest = wrap(text, columns(), "  ", "")
    word, space, others = first.partition(" ")
    print("\n".join([f"{paint(word, color)}{space}{others}", *rest]))


@dataclass
class Scope:
    """Which tensors to compare."""

    names: tuple[str, ...]
    """freeze entries, or names of frozen modules"""
    certificate: Certificate | None = None
    """the certificate whose tensors to compare; None: all that the names say"""
    known: frozenset[str] = frozenset()
    """entries that are certainly no misspellings: they may have nothing to compare"""
    statistics_only: bool = False
    """True: statistics of norm layers only (FREEZE.PARAMETERS: False)"""
    ignore: tuple[str, ...] = ()
    """FREEZE.IGNORE"""
    unseen: str = "buffers with persistent=False"
    notes: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The names; those that begin with ``!`` as exceptions."""
        names = ", ".join(name for name in self.names if not name.startswith("!"))
        exempted = ", ".join(name[1:] for name in self.names if name.startswith("!"))
        return f"{names} (without {exempted})" if exempted else names

    def choose(self, stored: Iterable[str]) -> list[str]:
        """The names among ``stored`` to compare.

        Raises CheckpointError where there is none, or where neither file has a certified tensor.
        """
        keys = list(stored)
        certificate = self.certificate
        chosen = self._by_names(keys) if certificate is None else _certified(keys, certificate)
        if not chosen:
            raise CheckpointError(
                f"verify needs tensors to compare, but the modules {', '.join(self.names)} contain none."
            )
        return chosen

    def _by_names(self, stored: list[str]) -> list[str]:
        keys, idle = select_keys(self.names, stored)
        refuse_idle([entry for entry in idle if entry not in self.known], stored)
        self.notes = tuple(
            f"{entry} has no stored tensor: there is nothing to compare in it" for entry in idle
        )
        if self.statistics_only:
            keys = [key for key in keys if key.rpartition(".")[2] in STATISTICS]
        return [key for key in keys if not any(segments_match(key, name) for name in self.ignore)]


def _certified(stored: list[str], certificate: Certificate) -> list[str]:
    """The names among ``stored`` that ``certificate`` covers, all of them."""
    found = certificate.matches(stored)
    lacking = [name for name in certificate.digests if name not in {*found.values(), *certificate.hidden}]
    if lacking:
        more = f" and {len(lacking) - 4} more" if len(lacking) > 4 else ""
        raise CheckpointError(
            f"verify needs every tensor of the certificate in one of the files, but neither has "
            f"{', '.join(lacking[:4])}{more}. Compare other files, or give --names."
        )
    return [key for key in stored if key in found]


def scope_of(args: argparse.Namespace, before: FreezeMetadata, after: FreezeMetadata) -> Scope:
    """From ``--names``, ``--cfg_file`` or B's own certificate; CheckpointError where there is none."""
    known = frozenset(
        entry for found in (before.certificate, after.certificate) if found for entry in found.entries
    )
    if args.names is not None:
        scope = Scope(tuple(args.names), known=known)
    elif args.cfg_file is not None:
        scope = _scope_of_plan(FreezePlan.from_cfg(cfg_from_yaml_file(args.cfg_file)), after)
    else:
        scope = Scope(()) if after.certificate is None else _scope_of_certificate(after.certificate)
    if not scope.names:
        raise CheckpointError(
            f"verify needs the names of what was frozen, but {_source(args)} gives none. "
            "Give them: --names vfe,backbone_2d.blocks, or --cfg_file with MODEL.NOT_TRAIN_IN_MULTI_TASK."
        )
    return scope


def _source(args: argparse.Namespace) -> str:
    """The source of the names, for a message."""
    return "--names" if args.names is not None else str(args.cfg_file or args.after)


def _scope_of_plan(plan: FreezePlan, after: FreezeMetadata) -> Scope:
    """What a config freezes in the epoch of B; the certificate in B where it has the same list."""
    if after.certificate is not None and not after.changes(plan):
        return _scope_of_certificate(after.certificate)
    freed = [f"!{name}" for phase in plan.schedule if phase.epoch < after.begun for name in phase.train]
    entries = (*plan.entries, *freed)
    known = frozenset(entries)  # a training with a misspelled one would not have begun
    return Scope(entries, known=known, statistics_only=not plan.parameters, ignore=plan.ignore)


def _scope_of_certificate(certificate: Certificate) -> Scope:
    hidden = ", ".join(certificate.hidden)
    exempted = [entry for entry in certificate.entries if entry.startswith("!")]
    names = (*certificate.names, *exempted) if certificate.names else certificate.entries
    return Scope(names, certificate, unseen=f"{hidden} (persistent=False)" if hidden else "nothing")
