"""A training in one of two processes; writes this rank's weights to OUT/<rank>.pt."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

from pcdet_freeze.cli.arguments.train import add_arguments
from pcdet_freeze.cli.common.flags import options_of
from pcdet_freeze.engine.run_context import TrainOptions
from pcdet_freeze.engine.train_api import train

parser = argparse.ArgumentParser()
add_arguments(parser)
args = parser.parse_args(sys.argv[2:])
result = train(args.cfg_file, args.set_cfgs, **options_of(TrainOptions, args))
torch.save(result.model.state_dict(), Path(sys.argv[1]) / f"{os.environ['RANK']}.pt")
