"""The command ``soak``; its flags and help: ``arguments/soak.py``."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from pcdet_freeze.bench.whole_runs.soak import Row, Soak


def run(args: argparse.Namespace) -> int:
    """Print the table; returns 0 where every fault was survived and all final weights are equal."""
    with tempfile.TemporaryDirectory(prefix="soak-") as temporary:
        out = args.output_dir or Path(temporary)
        soak = Soak(out, args.ranks, args.max_iters, args.workers, args.seed)
        rows = soak.run(args.minutes)
    print(table_of(rows))
    print(f"\ntrainings completed: {soak.complete}, with the weights of the unbroken one: {soak.exact}")
    print("\n".join(soak.notes))
    return int(bool(soak.notes) or soak.exact < soak.complete)


def table_of(rows: list[Row]) -> str:
    """A line for each kind of fault, and their sum."""
    head = list(rows[0])
    lines = [[str(row[key]) for key in head] for row in rows]
    lines.append(["all", *(str(sum(row[key] for row in rows)) for key in head[1:3]), "", ""])
    widths = [max(len(line[column]) for line in (head, *lines)) for column in range(len(head))]
    padded = [
        [word.ljust(width) for word, width in zip(line, widths, strict=True)] for line in (head, *lines)
    ]
    return "\n".join("  ".join(line).rstrip() for line in padded)
