"""Evaluate checkpoints; the same as ``pcdet-freeze test``.

One:             python tools/test.py --cfg_file cfgs/kitti_models/pointpillar.yaml --ckpt output/.../x.pth
All of a run:    python tools/test.py --cfg_file ... --extra_tag stage2 --eval_all
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pcdet_freeze.__main__ import leave
from pcdet_freeze.__main__ import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``test``; returns its exit code."""
    return command(["test", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    leave(main())
