"""Compare runs; the same as ``pcdet-freeze compare``.

python tools/compare.py output/synthetic_models/pointpillar/a output/synthetic_models/pointpillar/b
python tools/compare.py output/a output/b --html compare.html
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pcdet_freeze.__main__ import leave
from pcdet_freeze.__main__ import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``compare``; returns its exit code."""
    return command(["compare", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    leave(main())
