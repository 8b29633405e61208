"""Print a digest of what a checkpoint puts out over the test frames: equal digests, equal bits.

Of stages that share a detector, `dense_head`, `pred_boxes`, `pred_scores`, `pred_labels` must be equal.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from pcdet_freeze.config import cfg_from_args
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.engine.arguments import whole
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.testing.output_digest import OutputDigest, output_digests
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.distributed import pick_device
from pcdet_freeze.utils.safe_torch_load import load_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the frames."""
    parser.add_argument("--cfg_file", required=True, help="config with the model and the data")
    parser.add_argument("--ckpt", required=True, help="checkpoint of that model")
    parser.add_argument(
        "--batch_size", type=whole(1), default=4, help="frames a forward; part of what is compared"
    )
    parser.add_argument("--device", help="cpu or cuda; default: CUDA where it is there")
    parser.add_argument("--trust_checkpoint", action="store_true", help="load pickles of other authors")
    parser.add_argument("--out", type=Path, help="write the same as JSON there")
    parser.add_argument("--set", dest="set_cfgs", nargs=argparse.REMAINDER, default=[], help="KEY VALUE ...")


def run(args: argparse.Namespace) -> int:
    """Print a line an output; returns the exit code."""
    cfg = cfg_from_args(args)
    found = digests_of(cfg, args)
    for name, digest in found.items():
        print(f"{name:<20}{digest.hexdigest()}{digest.count:>14}")
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        plain = {name: {"digest": d.hexdigest(), "count": d.count} for name, d in found.items()}
        args.out.write_text(json.dumps(plain, indent=1) + "\n")
    return 0


def digests_of(cfg: Any, args: argparse.Namespace) -> dict[str, OutputDigest]:
    """Digests of all outputs over the test frames of ``cfg``."""
    quiet = logging.getLogger("pcdet_freeze.digest")
    data, loader, _ = build_dataloader(
        cfg.DATA_CONFIG, cfg.CLASS_NAMES, args.batch_size, training=False, logger=quiet
    )
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), data)
    load_model_state(model, load_checkpoint(args.ckpt, args.trust_checkpoint)["model_state"], args.ckpt)
    device = pick_device(args.device)
    return output_digests(model.to(device), loader, device)
