"""Predict point files and write pictures; the same as ``pcdet-freeze demo``.

python tools/demo.py --cfg_file cfgs/kitti_models/pointpillar.yaml --ckpt X.pth --data_path 000008.bin
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pcdet_freeze.__main__ import leave
from pcdet_freeze.__main__ import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``demo``; returns its exit code."""
    return command(["demo", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    leave(main())
