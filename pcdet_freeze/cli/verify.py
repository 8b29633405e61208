"""Compare the frozen state of two checkpoints: exit 0 when equal, 1 when not, 2 when it cannot tell."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.engine.checkpoint import OURS, load_checkpoint
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freeze import FreezePlan, compare_states

EQUAL, CHANGED, CANNOT_TELL = 0, 1, 2
ERROR_CODE = CANNOT_TELL
UNSEEN = "Not seen: buffers that a state_dict leaves out (persistent=False)."


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
    entries = entries_of(args, after)
    changed = compare_states(before["model_state"], after["model_state"], entries)
    named = ", ".join(entries)
    if changed:
        print(f"CHANGED: {len(changed)} of the tensors that {named} hold:")
        print("\n".join(f"  {line}" for line in changed))
    else:
        print(f"EQUAL: every stored tensor of {named} is the same, bit for bit.")
    print(UNSEEN)
    return CHANGED if changed else EQUAL


def entries_of(args: argparse.Namespace, after: Mapping[str, Any]) -> tuple[str, ...]:
    """Freeze entries from ``--names``, ``--cfg_file`` or checkpoint B; CheckpointError where there are none."""
    if args.names is not None:
        entries: tuple[str, ...] = tuple(part.strip() for part in args.names.split(",") if part.strip())
    elif args.cfg_file is not None:
        entries = FreezePlan.from_cfg(cfg_from_yaml_file(args.cfg_file)).entries
    else:
        entries = tuple((after.get(OURS, {}).get("freeze") or {}).get("entries", ()))
    if not entries:
        raise CheckpointError(
            f"verify needs the names of what was frozen, but {args.cfg_file or args.after} gives none. "
            "Say them: --names vfe,backbone_2d.blocks, or --cfg_file with MODEL.NOT_TRAIN_IN_MULTI_TASK."
        )
    return entries
