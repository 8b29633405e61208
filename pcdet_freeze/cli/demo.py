"""The command ``demo``; its flags and help: ``arguments/demo.py``."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from pcdet_freeze.cli.common.flags import cfg_of
from pcdet_freeze.config import load_cfg
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.datasets.file_formats.point_files import PointFiles, find_point_files
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.models import build_network
from pcdet_freeze.utils.distributed import pick_device
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint
from pcdet_freeze.visualization.bev import Style, require_matplotlib
from pcdet_freeze.visualization.demo import (
    Frame,
    draw_frame,
    found_in,
    frames_of_dataset,
    frames_of_files,
    predict,
)
from pcdet_freeze.visualization.scene import Scene

Predict = Callable[[Frame], Scene]


def run(args: argparse.Namespace) -> int:
    """Print two lines for each frame and write its picture; returns the exit code."""
    require_matplotlib()
    cfg = cfg_of(args)
    dataset, frames = _frames(cfg, args)
    after = _predictor(cfg, dataset, args.ckpt, args)
    before = None
    if args.before is not None:
        former = load_cfg(args.before_cfg_file, []) if args.before_cfg_file else cfg
        before = _former_predictor(former, cfg.CLASS_NAMES, dataset, args)
    style = Style(dataset.point_cloud_range, cfg.CLASS_NAMES, dataset.semantic_class_names, args.color)
    for frame in frames:
        scene = after(frame)
        path, kept = draw_frame(frame, style, args.out, scene, before(frame) if before else None)
        print(frame.summary(), flush=True)
        print(f"  {found_in(scene, cfg.CLASS_NAMES)}{f'; {kept}' if kept else ''}: {path}", flush=True)
    return 0


def _frames(cfg: Any, args: argparse.Namespace) -> tuple[DatasetTemplate, Iterator[Frame]]:
    if args.frames is not None:
        dataset = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
        return dataset, frames_of_dataset(dataset, args.frames)
    paths = find_point_files(args.data_path, args.ext)
    files = PointFiles(cfg.DATA_CONFIG, cfg.CLASS_NAMES, paths, args.intensity_scale)
    return files, frames_of_files(files)


def _former_predictor(
    former: Any, class_names: Sequence[str], dataset: DatasetTemplate, args: argparse.Namespace
) -> Predict:
    """Predictions of ``--before``, whose config may have fewer classes; labels are of ``class_names``."""
    lacking = [name for name in former.CLASS_NAMES if name not in class_names]
    if lacking:
        raise ConfigError(
            f"--before_cfg_file must have classes of --cfg_file ({', '.join(class_names)}); got "
            f"{', '.join(lacking)}. Add them to CLASS_NAMES of --cfg_file, or draw the two checkpoints apart"
        )
    seen = copy.copy(dataset)
    seen.class_names = list(former.CLASS_NAMES)
    found = _predictor(former, seen, args.before, args)
    labels = np.array([class_names.index(name) + 1 for name in former.CLASS_NAMES])

    def renumbered(frame: Frame) -> Scene:
        scene = found(frame)
        scene.labels = labels[scene.labels - 1]
        return scene

    return renumbered


def _predictor(cfg: Any, dataset: DatasetTemplate, ckpt: str, args: argparse.Namespace) -> Predict:
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset)
    load_model_state(model, trained_weights(load_checkpoint(ckpt, args.trust_checkpoint)), ckpt)
    device = pick_device(args.device)
    model.to(device).eval()
    return partial(predict, model, dataset, device=device, score=args.score)
