"""Train a model, and hold still what MODEL.NOT_TRAIN_IN_MULTI_TASK names.

One process:     python tools/train.py --cfg_file cfgs/kitti_models/pointpillar.yaml
Second stage:    python tools/train.py --cfg_file ... --extra_tag stage2 --pretrained_model .../x.pth \\
                     --set MODEL.NOT_TRAIN_IN_MULTI_TASK "[vfe, backbone_2d.blocks]"
Two processes:   torchrun --nproc_per_node=2 tools/train.py --launcher pytorch --cfg_file ...
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pcdet_freeze.engine import build
from pcdet_freeze.engine.arguments import train_parser
from pcdet_freeze.engine.run_tool import run_tool
from pcdet_freeze.engine.trainer import Trainer


def train(args: argparse.Namespace) -> Trainer:
    """Build, freeze, run. The order is the contract's: what is frozen never meets an optimizer."""
    run = build.start_run(args, "train")
    checkpoint = build.find_checkpoint(run)
    build.choose_seed(run, checkpoint)
    train_data = build.build_data(run, training=True)
    test_data = build.build_data(run, training=False) if args.num_epochs_to_eval > 0 else None

    # build, SyncBN, pretrained tensors
    model = build.build_model(run, train_data.dataset)

    # freeze, then the resumed model state, then its certificate
    hooks = build.freeze_and_resume(run, model, checkpoint)

    # optimizer over what trains, its state, DDP
    trainer = build.build_trainer(run, model, train_data, test_data, hooks, checkpoint)

    run.logger.info("**********************Start training %s**********************", run.folders.root)
    trainer.run()
    run.logger.info("**********************End training %s**********************", run.folders.root)
    return trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 after an error that was explained; 130 after Ctrl-C."""
    return run_tool(train, train_parser().parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
