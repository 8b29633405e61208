"""tools/train.py in one of two processes; writes this rank's weights to OUT/<rank>.pt."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path

import torch

from pcdet_freeze.engine.arguments import train_parser
from pcdet_freeze.utils import distributed

root, out = Path(sys.argv[1]), Path(sys.argv[2])
train = runpy.run_path(str(root / "tools" / "train.py"))["train"]
trainer = train(train_parser().parse_args(sys.argv[3:]))
torch.save(distributed.unwrap(trainer.model).state_dict(), out / f"{os.environ['RANK']}.pt")
distributed.stop()
