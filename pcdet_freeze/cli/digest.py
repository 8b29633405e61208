"""The command ``digest``; its flags and help: ``arguments/digest.py``."""

from __future__ import annotations

import argparse
import logging
from typing import Any

from pcdet_freeze.cli.common.flags import cfg_of
from pcdet_freeze.cli.common.json_file import require_writable, write_json
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.testing.output_digest import OutputDigest, output_digests, to_plain
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.distributed import pick_device
from pcdet_freeze.utils.progress import progress
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


def run(args: argparse.Namespace) -> int:
    """Print one line for each output; returns the exit code."""
    cfg = cfg_of(args)
    if args.out is not None:
        require_writable(args.out, "--out")
    found = digests_of(cfg, args)
    for name, digest in found.items():
        print(f"{name:<20}{digest.hexdigest()}{digest.count:>14}")
    if args.out is not None:
        write_json(args.out, to_plain(found))
    return 0


def digests_of(cfg: Any, args: argparse.Namespace) -> dict[str, OutputDigest]:
    """Digests of all outputs over the test frames of ``cfg``."""
    quiet = logging.getLogger("pcdet_freeze.digest")
    weights = trained_weights(load_checkpoint(args.ckpt, args.trust_checkpoint))
    device = pick_device(args.device)
    data, loader, _ = build_dataloader(
        cfg.DATA_CONFIG, cfg.CLASS_NAMES, args.batch_size, training=False, logger=quiet
    )
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), data)
    load_model_state(model, weights, args.ckpt)
    batches = progress(loader, len(loader), "digest", "batch")
    return output_digests(model.to(device), batches, device)
