"""The command ``demo``; its flags and help: ``arguments/demo.py``."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from pcdet_freeze.cli.common.flags import cfg_of
from pcdet_freeze.cli.common.json_file import require_folder
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
    Frames,
    draw_frame,
    found_in,
    frames_of_dataset,
    frames_of_files,
    parts_of,
    predict,
)
from pcdet_freeze.visualization.scene import Scene
from pcdet_freeze.visualization.viewer import Look, Viewer, has_display, require_viser

Predict = Callable[[Frame], Scene]


def run(args: argparse.Namespace) -> int:
    """Print two lines for each frame and write its picture, or show it; returns the exit code."""
    given = [name for name in ("port", "host", "no_browser") if getattr(args, name) is not None]
    if given and not args.view:
        raise ConfigError(f"--{given[0]} needs --view; add --view, or remove --{given[0]}")
    (require_viser if args.view else require_matplotlib)()
    cfg = cfg_of(args)
    require_folder(args.out, "--out")
    for file in filter(None, (args.ckpt, args.before)):
        load_checkpoint(file, args.trust_checkpoint)  # a wrong file is an error before data are read
    dataset, frames = _frames(cfg, args)
    after = _predictor(cfg, dataset, args.ckpt, args)
    before = None
    if args.before is not None:
        former = load_cfg(args.before_cfg_file, []) if args.before_cfg_file else cfg
        before = _former_predictor(former, cfg.CLASS_NAMES, dataset, args)
    style = Style(dataset.point_cloud_range, cfg.CLASS_NAMES, dataset.semantic_class_names, args.color)
    if args.view:
        _view(frames, style, after, before, args)
        return 0
    for frame in frames:
        scene = after(frame)
        path, kept = draw_frame(frame, style, args.out, scene, before(frame) if before else None)
        print(frame.summary(), flush=True)
        print(f"  {found_in(scene, cfg.CLASS_NAMES)}{f'; {kept}' if kept else ''}: {path}", flush=True)
    return 0


def _view(
    frames: Frames, style: Style, after: Predict, before: Predict | None, args: argparse.Namespace
) -> None:
    """Show the frames until Ctrl-C; prints a line for each that is read."""

    def look(index: int) -> Look:
        frame = frames.read(index)
        print(frame.summary(), flush=True)
        return Look(
            frame.summary(),
            parts_of(frame, style.limits, after(frame), before(frame) if before else None),
        )

    host, port = args.host or "127.0.0.1", 8080 if args.port is None else args.port
    viewer = Viewer(len(frames), look, style, args.score, host, port)
    try:
        viewer.run(open_browser=not args.no_browser and has_display())
    finally:
        viewer.close()


def _frames(cfg: Any, args: argparse.Namespace) -> tuple[DatasetTemplate, Frames]:
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
    score = 0.0 if args.view else args.score  # the view has a slider
    return partial(predict, model, dataset, device=device, score=score)
