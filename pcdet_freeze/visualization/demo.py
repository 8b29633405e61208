"""Run models over frames, draw what they find, and say it in a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from pcdet_freeze.datasets.file_formats.point_files import PointFiles
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.errors import DataError
from pcdet_freeze.models import load_data_to_gpu
from pcdet_freeze.utils.terminal import printable
from pcdet_freeze.visualization.bev import Style, draw, name_of, new_figure, picture_name, save
from pcdet_freeze.visualization.scene import Part, Scene, kept_boxes, prediction_of, truth_of

EMPTY = "no points in range: an empty result"


@dataclass
class Frame:
    """A frame as it was read, and as the model gets it."""

    name: str
    """name of the file, or of the frame in its data set; that of the picture, too"""
    raw: np.ndarray
    """(N, len(columns)) all points"""
    columns: Sequence[str]
    sample: dict[str, Any]
    """of the data set in test mode; the labels of a data set are in it, too"""

    def summary(self) -> str:
        """Number of points, their share in range, and the range of each column."""
        if not len(self.raw):
            return f"{self.name}: no points"
        low, high = self.raw.min(axis=0).tolist(), self.raw.max(axis=0).tolist()
        columns = ", ".join(
            f"{name} {least:.4g} to {most:.4g}"
            for name, least, most in zip(self.columns, low, high, strict=True)
        )
        share = len(self.sample["points"]) / len(self.raw)
        return f"{self.name}: {len(self.raw)} points, {share:.1%} in range ({columns})"


@dataclass
class Frames:
    """Frames that are read one by one, when they are asked for."""

    count: int
    read: Callable[[int], Frame]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Frame]:
        return map(self.read, range(self.count))


def frames_of_files(files: PointFiles) -> Frames:
    """Each file."""

    def read(index: int) -> Frame:
        raw = files.raw_points(index)
        given = {"points": raw.copy(), "frame_id": printable(files.files[index].stem)}
        sample = files.prepare_data(given, files.random_state(index))
        return Frame(printable(files.files[index].name), raw, files.columns, sample)

    return Frames(len(files), read)


def frames_of_dataset(dataset: DatasetTemplate, count: int) -> Frames:
    """``count`` frames of a data set in test mode, evenly spaced; DataError where it has none."""
    if not len(dataset):
        raise DataError(
            f"{type(dataset).__name__} at {dataset.root_path} has no frame in test mode. Check "
            "DATA_CONFIG.DATA_SPLIT.test, or give --data_path"
        )
    columns = dataset.point_feature_encoder.src_feature_list
    indices = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int).tolist()

    def read(number: int) -> Frame:
        index = indices[number]
        raw = np.asarray(dataset.load_sample(index)["points"])
        return Frame(dataset.frame_name(index), raw, columns, dataset[index])

    return Frames(len(indices), read)


def predict(
    model: nn.Module, dataset: DatasetTemplate, frame: Frame, device: torch.device, score: float = 0.0
) -> Scene:
    """What ``model``, in eval mode, finds in ``frame``; boxes below ``score`` are left out.

    Without a point in range the scene is empty, and the model does not run.
    """
    points = frame.sample["points"]
    if not len(points):
        return Scene(points)
    batch = dataset.collate_batch([dict(frame.sample)])
    load_data_to_gpu(batch, device)
    with torch.no_grad():
        predictions, _ = model(batch)
    return prediction_of(predictions[0], points, score)


def found_in(scene: Scene, class_names: Sequence[str]) -> str:
    """Numbers of boxes, point classes and lanes, in words."""
    if not len(scene.points):
        return EMPTY
    found = []
    if scene.scores is not None:
        counts = Counter(name_of(class_names, label - 1) for label in scene.labels.tolist())
        each = ", ".join(f"{name} {count}" for name, count in counts.most_common())
        found.append(f"{len(scene.boxes)} boxes{f' ({each})' if each else ''}")
    if scene.point_classes is not None:
        found.append(f"{len(np.unique(scene.point_classes))} classes of points")
    if scene.lanes:
        found.append(f"{len(scene.lanes)} lanes")
    return ", ".join(found) or "nothing found"


def has_labels(frame: Frame) -> bool:
    """Whether the frame has labels that can be drawn."""
    return any(frame.sample.get(key) is not None for key in ("gt_boxes", "point_labels", "lane_map"))


def parts_of(
    frame: Frame, limits: Sequence[float] | np.ndarray, after: Scene, before: Scene | None = None
) -> list[Part]:
    """The labels if there are any, the former prediction if given, the prediction."""
    parts = [Part("labels", truth_of(frame.sample, limits))] if has_labels(frame) else []
    if before is None:
        return [*parts, Part("prediction", after)]
    former = Part("before", before, kept_boxes(after, before))
    return [*parts, former, Part("after", after, kept_boxes(before, after))]


def kept_in(parts: Sequence[Part]) -> str:
    """How many boxes are in both predictions with equal bits, in words; "" without a former prediction."""
    kept = {part.name: part.kept for part in parts if part.kept is not None}
    if not {"before", "after"} <= kept.keys():
        return ""
    before, after = kept["before"], kept["after"]
    return f"{int(after.sum())} of {len(before)} boxes kept, {len(after)} now"


def draw_frame(
    frame: Frame, style: Style, folder: Path, after: Scene, before: Scene | None = None
) -> tuple[Path, str]:
    """Write a PNG of the :func:`parts_of` a frame beside each other.

    Beside a former prediction boxes are green where both have them with equal bits, and red otherwise.

    Returns:
        The path, and how many boxes were kept (see :func:`kept_in`).
    """
    parts = parts_of(frame, style.limits, after, before)
    figure, axes = new_figure(style, len(parts))
    for ax, part in zip(axes, parts, strict=True):
        draw(ax, part.scene, style, f"{frame.name}: {part.name}", part.kept)
    return save(figure, folder / picture_name(frame.name)), kept_in(parts)
