"""The process that packs a list: its memory goes back to the system when it ends.

Reads its order from the standard input; each line of its standard output is a report of its progress.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from pcdet_freeze.datasets.packed.kinds import find_kind
from pcdet_freeze.datasets.packed.packing import pack
from pcdet_freeze.datasets.reading.timed_reads import reads_within
from pcdet_freeze.errors import PCDetFreezeError


def report(text: str) -> None:
    """One line for the process that waits; BrokenPipeError where it has ended."""
    print(text, flush=True)


def main() -> int:
    """Pack as ordered; 0, or 1 with the reason on the standard error."""
    order = json.load(sys.stdin)
    sources = [Path(source) for source in order["sources"]]
    try:
        with reads_within(order["limit"]):
            pack(find_kind(order["kind"]), sources, Path(order["target"]), report)
    except (PCDetFreezeError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
