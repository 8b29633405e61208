"""Compare the frozen state of two checkpoints: exit code 0 when equal, 1 when not, 2 when unknown."""

from __future__ import annotations

import argparse
from typing import Any

from pcdet_freeze.cli.common.help import DETECTOR, SEGMENTATION, Examples

EXAMPLES: Examples = (
    ("is all that the second one froze still as in the first one?", f"{DETECTOR} {SEGMENTATION}"),
    ("these modules only", f"{DETECTOR} {SEGMENTATION} --names vfe,dense_head"),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two checkpoints, and where the names come from."""
    parser.add_argument("before", metavar="A.pth", help="checkpoint from before the stage")
    parser.add_argument("after", metavar="B.pth", help="checkpoint from after it")
    parser.add_argument(
        "--trust_checkpoint", action="store_true", help="read checkpoints that may run code; only your own"
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--names",
        nargs="+",
        action=_Names,
        metavar="NAME",
        help="entries as in the YAML, `a b` or a,b; default: those that B was trained with",
    )
    source.add_argument("--cfg_file", help="config whose MODEL.NOT_TRAIN_IN_MULTI_TASK gives the entries")


class _Names(argparse.Action):
    """Splits ``a,b c`` into names. Files after them are an error: A.pth and B.pth come first."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: Any = None
    ) -> None:
        names = [part.strip() for value in values for part in value.strip("[]").split(",")]
        files = [name for name in names if name.endswith(".pth")]
        if files:
            parser.error(f"the checkpoints must come before --names; got {', '.join(files)} after it")
        setattr(namespace, self.dest, [name for name in names if name])
