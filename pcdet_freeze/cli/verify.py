"""Compare the frozen state of two checkpoints: exit 0 when equal, 1 when not, 2 when it cannot tell."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.engine.checkpoint import OURS, load_checkpoint
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freeze import Certificate, FreezePlan, compare_states
from pcdet_freeze.freeze.certificate import plain_key

EQUAL, CHANGED, CANNOT_TELL = 0, 1, 2
ERROR_CODE = CANNOT_TELL
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two checkpoints, and where the names come from."""
    parser.add_argument("before", metavar="A.pth", help="checkpoint from before the stage")
    parser.add_argument("after", metavar="B.pth", help="checkpoint from after it")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--names", help="entries a,b as in the YAML; default: those that B was trained with")
    source.add_argument("--cfg_file", help="config whose MODEL.NOT_TRAIN_IN_MULTI_TASK gives the entries")


def run(args: argparse.Namespace) -> int:
    """Print what changed in the frozen state; returns the exit code."""
    before, after = load_checkpoint(args.before), load_checkpoint(args.after)
    scope = scope_of(args, after.get(OURS) or {})
    states = [scope.of(state["model_state"]) for state in (before, after)]
    changed = compare_states(states[0], states[1], scope.names)
    named = ", ".join(scope.names)
    if changed:
        print(f"CHANGED: {len(changed)} of the tensors of {named}:")
        print("\n".join(f"  {line}" for line in changed))
    else:
        print(f"EQUAL: {len(states[1])} stored tensors of {named} are the same, bit for bit.")
    print(f"Not seen, since a checkpoint does not hold them: {scope.unseen}.")
    return CHANGED if changed else EQUAL


@dataclass(frozen=True)
class Scope:
    """Which tensors to compare."""

    names: tuple[str, ...]
    """freeze entries"""
    keys: frozenset[str] | None = None
    """exact names of tensors; None: all that the entries name"""
    held_only: bool = False
    """True: statistics of norm layers only (FREEZE.PARAMETERS: False)"""
    unseen: str = "buffers with persistent=False"

    def of(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The part of a model state that is to be compared."""
        plain = {plain_key(key): value for key, value in state.items()}
        chosen = self._chosen(plain)
        if not chosen:
            raise CheckpointError(
                f"verify needs something to compare, but {', '.join(self.names)} holds no tensor."
            )
        return chosen

    def _chosen(self, plain: Mapping[str, Any]) -> dict[str, Any]:
        if self.keys is not None:
            return {key: value for key, value in plain.items() if key in self.keys}
        if self.held_only:
            return {key: value for key, value in plain.items() if key.rpartition(".")[2] in STATISTICS}
        return dict(plain)


def scope_of(args: argparse.Namespace, ours: Mapping[str, Any]) -> Scope:
    """From ``--names``, ``--cfg_file`` or B's own certificate; CheckpointError where there is none."""
    if args.names is not None:
        scope = Scope(tuple(part.strip() for part in args.names.split(",") if part.strip()))
    elif args.cfg_file is not None:
        plan = FreezePlan.from_cfg(cfg_from_yaml_file(args.cfg_file))
        scope = Scope(plan.entries, held_only=not plan.parameters)
    else:
        scope = _scope_of_certificate((ours.get("freeze") or {}).get("certificate"))
    if not scope.names:
        raise CheckpointError(
            f"verify needs the names of what was frozen, but {args.cfg_file or args.after} gives none. "
            "Say them: --names vfe,backbone_2d.blocks, or --cfg_file with MODEL.NOT_TRAIN_IN_MULTI_TASK."
        )
    return scope


def _scope_of_certificate(plain: Mapping[str, Any] | None) -> Scope:
    if plain is None:
        return Scope(())
    certificate = Certificate.from_plain(plain)
    hidden = ", ".join(certificate.hidden)
    keys = frozenset(certificate.digests) - frozenset(certificate.hidden)
    return Scope(certificate.names, keys, unseen=f"{hidden} (persistent=False)" if hidden else "nothing")
