"""The command ``stitch``; its flags and help: ``arguments/stitch.py``."""

from __future__ import annotations

import argparse

from pcdet_freeze.cli.common.json_file import require_writable
from pcdet_freeze.engine.checkpoint.io import save_checkpoint
from pcdet_freeze.engine.checkpoint.stitch import Source, Take, stitch
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


def run(args: argparse.Namespace) -> int:
    """Write the joined checkpoint and print its parts; returns 0."""
    named = [read_take(text) for text in args.take]
    require_writable(args.out, "--out")
    trunk = Source.of(args.trunk, load_checkpoint(args.trunk, args.trust_checkpoint))
    sources: dict[str, Source] = {}
    takes = []
    for entries, name in named:
        if name not in sources:
            sources[name] = Source.of(name, load_checkpoint(name, args.trust_checkpoint))
        takes.append(Take(sources[name], entries))
    checkpoint, lines = stitch(trunk, takes)
    save_checkpoint(checkpoint, args.out)
    print("\n".join([f"{args.out}: {len(checkpoint['model_state'])} tensors", *(f"  {x}" for x in lines)]))
    return 0


def read_take(text: str) -> tuple[tuple[str, ...], str]:
    """``a,b:file`` -> (("a", "b"), "file"); CheckpointError for anything else."""
    names, _, file = text.partition(":")
    entries = tuple(part.strip() for part in names.split(",") if part.strip())
    if not entries or not file:
        raise CheckpointError(
            "--take must be modules and a file, such as segment_head,backbone_2d.segblocks:seg.pth; got "
            f"{text!r}"
        )
    return entries, file
