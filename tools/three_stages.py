"""Train detection, then segmentation, then lanes; the same as ``pcdet-freeze three-stages``.

python tools/three_stages.py                 # five minutes on two cores; the time is printed at the end
python tools/three_stages.py --quick         # about a minute: not the quality
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pcdet_freeze.__main__ import leave
from pcdet_freeze.__main__ import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``three-stages``; returns its exit code."""
    return command(["three-stages", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    leave(main())
