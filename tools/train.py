"""Train a model; MODEL.NOT_TRAIN_IN_MULTI_TASK names the modules to freeze. Same as ``pcdet-freeze train``.

One process:     python tools/train.py --cfg_file cfgs/kitti_models/pointpillar.yaml
Second stage:    python tools/train.py --cfg_file ... --extra_tag stage2 --pretrained_model .../x.pth \\
                     --set MODEL.NOT_TRAIN_IN_MULTI_TASK "[vfe, backbone_2d.blocks]"
Two processes:   torchrun --nproc_per_node=2 tools/train.py --launcher pytorch --cfg_file ...
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pcdet_freeze.__main__ import leave
from pcdet_freeze.__main__ import main as command


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``train``; returns its exit code."""
    return command(["train", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    leave(main())
