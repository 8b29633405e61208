"""Print a digest of each output of a checkpoint over the test frames: equal digests mean equal bits.

Of stages that share a detector, `dense_head`, `pred_boxes`, `pred_scores`, `pred_labels` must be equal.
"""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from pcdet_freeze.cli.common.flags import add_cfg, add_set, add_trust, cfg_of, whole
from pcdet_freeze.cli.common.json_file import write_json
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.testing.output_digest import OutputDigest, output_digests, to_plain
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.distributed import pick_device
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The model and the frames."""
    add_cfg(parser)
    parser.add_argument("--ckpt", required=True, help="checkpoint of that model")
    parser.add_argument(
        "--batch_size", type=whole(1), default=4, help="frames per forward; digests depend on it"
    )
    parser.add_argument("--device", help="cpu or cuda; default: CUDA if available")
    add_trust(parser)
    parser.add_argument("--out", type=Path, help="write the digests to this JSON file")
    add_set(parser)


def run(args: argparse.Namespace) -> int:
    """Print one line for each output; returns the exit code."""
    cfg = cfg_of(args)
    found = digests_of(cfg, args)
    for name, digest in found.items():
        print(f"{name:<20}{digest.hexdigest()}{digest.count:>14}")
    if args.out is not None:
        write_json(args.out, to_plain(found))
    return 0


def digests_of(cfg: Any, args: argparse.Namespace) -> dict[str, OutputDigest]:
    """Digests of all outputs over the test frames of ``cfg``."""
    quiet = logging.getLogger("pcdet_freeze.digest")
    data, loader, _ = build_dataloader(
        cfg.DATA_CONFIG, cfg.CLASS_NAMES, args.batch_size, training=False, logger=quiet
    )
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), data)
    load_model_state(model, trained_weights(load_checkpoint(args.ckpt, args.trust_checkpoint)), args.ckpt)
    device = pick_device(args.device)
    return output_digests(model.to(device), loader, device)
