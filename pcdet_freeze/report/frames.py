"""Pictures of fixed frames of the test data, before and after a training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from pcdet_freeze.datasets.reading.lone_reader import lone_reader
from pcdet_freeze.datasets.reading.timed_reads import reads_within
from pcdet_freeze.freezing.checks.unchanged_state import same_buffers
from pcdet_freeze.freezing.eval_lock import eval_mode
from pcdet_freeze.report.record import Picture
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.visualization.bev import (
    BOX_COLORS,
    CHANGED_COLOR,
    CLASS_COLORS,
    KEPT_COLOR,
    LANE_COLOR,
    NO_CLASS_COLOR,
    ColorBy,
    Style,
)
from pcdet_freeze.visualization.demo import Frame, draw_frame, found_in, frames_of_dataset, predict
from pcdet_freeze.visualization.scene import Scene

FOLDER = "pictures"
WIDTH = 4.5
"""inches of one picture"""
MEANINGS = (*CLASS_COLORS, *BOX_COLORS, NO_CLASS_COLOR, LANE_COLOR, KEPT_COLOR, CHANGED_COLOR)


class FrameArtist:
    """Draws ``count`` frames of ``dataset``, evenly spaced: labels, prediction at the start, prediction.

    Args:
        dataset: in test mode; None: there are no test data.
    """

    def __init__(self, dataset: Any, class_names: Sequence[str], count: int) -> None:
        self.dataset, self.class_names, self.count = dataset, class_names, count
        self._before: list[Scene] = []

    @property
    def obstacle(self) -> str:
        """Why there are no pictures; "" where there are."""
        if self.count == 0:
            return "No pictures: OPTIMIZATION.REPORT_FRAMES is 0."
        if self.dataset is None:
            return "No pictures: the run had no test data (--num_epochs_to_eval 0)."
        if find_spec("matplotlib") is None:
            return "No pictures: matplotlib is not installed (pip install 'pcdet-freeze[vis]')."
        return ""

    def look(self, model: nn.Module, device: torch.device, loaded: Sequence[str]) -> None:
        """Keep what ``model`` finds now, as the prediction of the start.

        Args:
            loaded: names of the pretrained tensors; without any, a head is not drawn: its weights are random.
        """
        if not self.obstacle:
            found = self._predict(model, device)
            self._before = [without_new_heads(scene, model, loaded) for _, scene in found]

    def draw(self, model: nn.Module, device: torch.device, root: Path) -> list[Picture]:
        """Write the pictures below ``root``, with what ``model`` finds now."""
        if self.obstacle:
            return []
        made = []
        for number, (frame, scene) in enumerate(self._predict(model, device)):
            before = self._before[number] if number < len(self._before) else None
            color: ColorBy = (
                "class" if scene.point_classes is not None or scene.cells is not None else "height"
            )
            style = Style(self.dataset.point_cloud_range, self.class_names, self.dataset.semantic_class_names,
                          color_by=color, width=WIDTH, axes=False)  # fmt: skip
            path, kept = draw_frame(frame, style, root / FOLDER, scene, before)
            shrink(path)
            note = "; ".join(filter(None, (found_in(scene, self.class_names), kept)))
            made.append(Picture(frame.name, note, f"{FOLDER}/{path.name}"))
        return made

    def _predict(self, model: nn.Module, device: torch.device) -> list[tuple[Frame, Scene]]:
        """The model and all generators are unchanged afterwards. Raises ReadTimeoutError (TIMEOUT)."""
        reader, limit = lone_reader(self.dataset), float(getattr(self.dataset, "timeout", 0.0))
        with untouched_rng(), eval_mode(model), same_buffers(model), reads_within(limit):
            frames = frames_of_dataset(reader, self.count)
            return [(frame, predict(model, reader, frame, device, score=0.3)) for frame in frames]


def without_new_heads(scene: Scene, model: nn.Module, loaded: Sequence[str]) -> Scene:
    """``scene`` without point classes, cells or lanes of heads that no tensor of ``loaded`` belongs to."""
    known = {name.partition(".")[0] for name in loaded}
    if hasattr(model, "segment_head") and "segment_head" not in known:
        scene = replace(scene, point_classes=None, cells=None)
    if hasattr(model, "lane_head") and "lane_head" not in known:
        scene = replace(scene, lanes=[])
    return scene


def shrink(path: Path) -> None:
    """Rewrite a PNG with at most 256 colours, in a third of its bytes.

    Colours with a meaning, and the most frequent ones, stay as they are. With averages, as of
    ``Image.quantize``, the colour of a class would be another one in each picture.
    """
    with Image.open(path) as picture:
        red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB"), np.int32), 2, 0)
    codes, place, counts = np.unique(
        (red << 16) + (green << 8) + blue, return_inverse=True, return_counts=True
    )
    first = np.lexsort((-counts, ~np.isin(codes, [int(color[1:], 16) for color in MEANINGS])))
    colors = np.stack([codes >> 16, codes >> 8 & 255, codes & 255], axis=1)
    palette = colors[first[:256]]
    nearest = np.concatenate(
        [((part[:, None] - palette) ** 2).sum(axis=2).argmin(axis=1) for part in np.array_split(colors, 64)]
    )
    small = Image.fromarray(nearest.astype(np.uint8)[place].reshape(red.shape), "P")
    small.putpalette(palette.astype(np.uint8).tobytes())
    small.save(path, format="PNG", optimize=True)
