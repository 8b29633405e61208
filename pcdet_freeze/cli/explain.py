"""The command ``explain``; its flags and help: ``arguments/explain.py``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pcdet_freeze.cli.common.flags import cfg_of
from pcdet_freeze.cli.common.module_tree import draw_tree
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.datasets.loader import next_batch
from pcdet_freeze.datasets.random_frames import RandomFrames
from pcdet_freeze.datasets.registry import DATASETS, NOT_BUILT
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.engine.checkpoint.weights import compare_keys, fit_state
from pcdet_freeze.engine.explain import Explanation, explain
from pcdet_freeze.engine.prefix_cache.cache import outlook
from pcdet_freeze.errors import CheckpointError, DataError, PCDetFreezeError
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.prefix import Options
from pcdet_freeze.models import build_network, load_data_to_gpu
from pcdet_freeze.utils.distributed import pick_device
from pcdet_freeze.utils.rng import set_seed
from pcdet_freeze.utils.terminal import Color, columns, paint, wrap
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


def run(args: argparse.Namespace) -> int:
    """Print the table (or the data); returns the exit code."""
    cfg = cfg_of(args, check=False)
    plan = check_config(cfg, data=False)
    device = pick_device(args.device)
    checkpoint = None if args.ckpt is None else load_checkpoint(args.ckpt, args.trust_checkpoint)
    set_seed(0)
    dataset, batch_dict, source = one_batch(cfg, args.batch_size)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset)
    weights = load_weights(model, checkpoint, args.ckpt)
    load_data_to_gpu(batch_dict, device)
    handle = freeze(model.to(device), plan, certify=False)
    found = explain(handle, cfg.OPTIMIZATION, batch_dict, args.depth)
    if plan.cache is not None and dataset.training and not found.problems:
        found = with_cache(found, handle.model, plan, dataset, batch_dict)
    if args.json:
        plain = {"cfg_file": args.cfg_file, "weights": weights, "batch": source, **found.to_plain()}
        print(json.dumps(plain, indent=1))
    else:
        print_table(found, [weights, source], columns())
    return 1 if found.problems else 0


def with_cache(
    found: Explanation, model: Any, plan: FreezePlan, dataset: Any, batch_dict: dict[str, Any]
) -> Explanation:
    """``found`` and what FREEZE.CACHE would keep, or why a training would refuse it."""
    assert plan.cache is not None
    try:
        line = outlook(model, Options.of(plan), plan.cache, dataset, batch_dict)
    except PCDetFreezeError as error:
        return replace(found, problems=(*found.problems, str(error)))
    return replace(found, notes=(*found.notes, line))


def one_batch(cfg: Any, batch_size: int) -> tuple[DatasetTemplate, dict[str, Any], str]:
    """(data set, training batch, where it comes from): real, or random where no data can be read."""
    name = cfg.DATA_CONFIG.get("DATASET")
    if name in NOT_BUILT[DATASETS.kind]:
        return random_batch(cfg, batch_size, f"{name} is not implemented")
    try:
        dataset, loader, sampler = build_dataloader(
            cfg.DATA_CONFIG, cfg.CLASS_NAMES, batch_size, training=True, workers=0
        )
        sampler.set_epoch(0)
        batch = next_batch(iter(loader), 0, len(loader))
        return dataset, batch, f"one batch of {cfg.DATA_CONFIG.DATASET} ({batch_size} frames)"
    except DataError as error:
        return random_batch(cfg, batch_size, f"there is no data: {str(error).splitlines()[0]}")


def random_batch(cfg: Any, batch_size: int, reason: str) -> tuple[DatasetTemplate, dict[str, Any], str]:
    """The same, of random frames."""
    frames = RandomFrames(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
    batch_dict = frames.collate_batch([frames[index] for index in range(batch_size)])
    return frames, batch_dict, f"a random batch ({batch_size} frames), since {reason}"


def load_weights(model: Any, checkpoint: Mapping[str, Any] | None, ckpt: str | None) -> str:
    """Load what fits of ``checkpoint``, read from ``ckpt``; returns a line that says what was loaded."""
    if checkpoint is None or ckpt is None:
        return "random weights (no --ckpt)"
    state = fit_state(model, checkpoint["model_state"], ckpt)
    fit = compare_keys(model, state)
    if not fit.loaded:
        raise CheckpointError(f"{ckpt} must share tensors with the model, but none fits:\n{fit.table(4)}")
    model.load_state_dict({name: state[name] for name in fit.loaded}, strict=False)
    counts = (len(fit.missing), len(fit.unexpected), len(fit.misshaped))
    rest = "{} missing, {} unexpected, {} of another shape".format(*counts)
    return f"{len(fit.loaded)} tensors of {ckpt}; {rest}"


def print_table(found: Explanation, sources: Sequence[str], limit: int) -> None:
    """Summary, tree, notes, warnings and errors in lines of at most ``limit`` characters."""
    head = [found.summary, f"weights: {sources[0]}", f"losses traced with {sources[1]}"]
    lines = [line for text in head for line in wrap(text, limit, "  ", "")]
    lines += ["", *draw_tree(found.rows, limit)]
    blocks: tuple[tuple[str, Sequence[str], Color | None], ...] = (
        ("schedule", found.schedule, None),
        ("note", found.notes, None),
        ("warning", found.warnings, "yellow"),
        ("ERROR", found.problems, "red"),
    )
    for kind, texts, color in blocks:
        for text in texts:
            first, *rest = wrap(f"{kind}: {text}", limit, "  ", "")
            lines += ["", first.replace(kind, paint(kind, color), 1), *rest]
    print("\n".join(lines))
