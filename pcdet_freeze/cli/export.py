"""The command ``export``; its flags and help: ``arguments/export.py``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pcdet_freeze.cli.common.flags import cfg_of
from pcdet_freeze.cli.common.json_file import require_folder
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.file_formats.point_files import PointFiles, find_point_files
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.export.folder import NETWORK, read_digests, write_export
from pcdet_freeze.export.onnx_file import require_onnx
from pcdet_freeze.export.raw_outputs import RawOutputs
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.models import build_network, load_data_to_gpu
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

SAME, CHANGED = 0, 1


def run(args: argparse.Namespace) -> int:
    """Write the files and print one line for each output and head; 1 if a head is not as in --against."""
    require_onnx()
    earlier = None if args.against is None else read_digests(args.against)
    cfg = cfg_of(args)
    require_folder(args.out, "--out")
    weights = trained_weights(load_checkpoint(args.ckpt, args.trust_checkpoint))
    dataset = _dataset(cfg, args)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset)
    load_model_state(model, weights, args.ckpt)
    batch = _batch(dataset, args.batch_size)
    source = (
        f"Exported by `pcdet-freeze export` from {Path(args.ckpt).name}, config {Path(args.cfg_file).name}."
    )
    found = write_export(RawOutputs(model, args.batch_size), batch, args.out, source)
    for name, error in found.errors.items():
        print(f"{name:<32} differs from torch by {error:.1e} at most")
    for head, digest in found.digests.items():
        print(f"{head:<32} {digest[:16]}{_verdict(head, digest, earlier)}")
    print(f"wrote {args.out / NETWORK}")
    changed = [head for head, digest in found.digests.items() if (earlier or {}).get(head, digest) != digest]
    return CHANGED if changed else SAME


def _verdict(head: str, digest: str, earlier: dict[str, str] | None) -> str:
    if earlier is None:
        return ""
    if head not in earlier:
        return " new"
    return " the same as in --against" if earlier[head] == digest else " CHANGED since --against"


def _dataset(cfg: Any, args: argparse.Namespace) -> DatasetTemplate:
    if args.data_path is None:
        return build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    return PointFiles(cfg.DATA_CONFIG, cfg.CLASS_NAMES, find_point_files(args.data_path))


def _batch(dataset: DatasetTemplate, batch_size: int) -> dict[str, Any]:
    if len(dataset) < batch_size:
        raise ConfigError(
            f"--batch_size must be at most the number of frames, {len(dataset)}; got {batch_size}"
        )
    batch = dataset.collate_batch([dataset[index] for index in range(batch_size)])
    load_data_to_gpu(batch, "cpu")
    return batch
