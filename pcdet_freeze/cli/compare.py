"""The command ``compare``; its flags and help: ``arguments/compare.py``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pcdet_freeze.cli.common.json_file import require_writable
from pcdet_freeze.errors import DataError
from pcdet_freeze.report.compare import comparison_page, comparison_plain
from pcdet_freeze.report.compare_text import comparison_text
from pcdet_freeze.report.record import FILE, RunRecord, load_record
from pcdet_freeze.utils.output_files import write_text
from pcdet_freeze.utils.terminal import columns

ERROR_CODE = 2


def run(args: argparse.Namespace) -> int:
    """Print the comparison; returns the exit code."""
    if args.html is not None:
        require_writable(args.html, "--html")
    records = [read_run(folder) for folder in args.runs]
    if args.json:
        print(json.dumps(comparison_plain(records), indent=1))
    else:
        print(comparison_text(records, columns()))
    if args.html is not None:
        write_text(args.html, comparison_page(records))
    return 0


def read_run(folder: Path) -> RunRecord:
    """The record of the run in ``folder``, or of the only one below it."""
    if folder.suffix == ".pth":
        raise DataError(
            f"A run must be the folder of a training; got the checkpoint {folder}. Name its folder, "
            "or compare checkpoints with `pcdet-freeze verify A.pth B.pth`."
        )
    if folder.is_file():
        folder = folder.parent
    if not (folder / FILE).is_file():
        found = sorted(folder.rglob(FILE))
        if len(found) > 1:
            names = ", ".join(str(file.parent) for file in found[:5])
            raise DataError(
                f"A run must be one folder; {folder} has {len(found)} runs: {names}. Name one of them."
            )
        folder = found[0].parent if found else folder
    return load_record(folder)
