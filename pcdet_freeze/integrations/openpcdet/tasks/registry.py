"""The tasks that :func:`add_task` registered in this process."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from pcdet_freeze.errors import ConfigError

ReadLabels = Callable[[dict[str, Any], Any], Any]
"""``read(frame, dataset)``; see :func:`add_task`"""
Transform = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""``transform(array, matrix)``: the array of a frame whose points were multiplied by ``matrix`` (4, 4)"""
OWN_SECTIONS = (
    "VFE", "BACKBONE_3D", "MAP_TO_BEV", "PFE", "BACKBONE_2D", "DENSE_HEAD", "POINT_HEAD", "ROI_HEAD",
    "POST_PROCESSING", "FREEZE",
)  # fmt: skip
"""sections of MODEL with another meaning"""
OWN_KEYS = (
    "points", "voxels", "voxel_coords", "voxel_num_points", "gt_boxes", "gt_names", "frame_id", "batch_size",
)  # fmt: skip
"""keys of a batch with another meaning"""


@dataclass(frozen=True)
class Labels:
    """Labels of a task. Data workers receive it by pickle: ``read`` and ``transform`` must be importable."""

    key: str
    """key in ``batch_dict``"""
    per: Literal["point", "frame"] = "point"
    read: ReadLabels | None = None
    """None: the data set itself writes ``key`` before its ``prepare_data``"""
    ignore: int = 255
    """label of points without one"""
    pasted: Mapping[str, int] = field(default_factory=dict, hash=False)
    """class name -> label of the points that gt_sampling pastes"""
    transform: Transform | None = None


@dataclass(frozen=True)
class Task:
    """A head that ``MODEL.<section>`` adds to a detector."""

    section: str
    head: type[nn.Module]
    labels: Labels | None

    @property
    def name(self) -> str:
        """Name of the module in the detector."""
        return self.section.lower()


_tasks: dict[str, Task] = {}


def add_task(
    section: str,
    head: type[nn.Module],
    *,
    labels: str | None = None,
    read: ReadLabels | None = None,
    per: Literal["point", "frame"] = "point",
    ignore: int = 255,
    pasted: Mapping[str, int] | None = None,
    transform: Transform | None = None,
) -> None:
    """Add a task head to the detectors of OpenPCDet whose config has the section ``MODEL.<section>``.

    ``MODEL.SEGMENT_HEAD`` becomes the module ``segment_head`` of the detector, beside ``dense_head``. Call it
    before OpenPCDet builds its data set. ``docs/openpcdet_tasks.md`` has a complete example.

    Args:
        section: name of the section, in capitals: ``SEGMENT_HEAD``.
        head: built with those of these keyword arguments that its ``__init__`` accepts: ``model_cfg`` (the
            section), ``input_channels`` (of ``spatial_features_2d``; None without a BEV backbone),
            ``num_class`` and ``class_names`` (of the detection), ``grid_size``, ``voxel_size``,
            ``point_cloud_range``. ``forward(batch_dict)`` returns ``batch_dict``; ``get_loss()`` returns
            (loss, dict of values for the log). Optional: ``add_predictions(batch_dict, pred_dicts)``;
            ``metric_counts(batch_dict)``, a tensor (B, ...) of counts that add up over frames, and the static
            method ``metric(counts)``, a dict of the numbers that they give.
        labels: key of the labels in ``batch_dict``. None: the head needs no labels.
        read: ``read(frame, dataset)`` is called with what the data set hands to ``prepare_data``
            (``points``, ``frame_id``, ...), before augmentation, and returns the labels of that frame. For
            points: an array (N,) for ``frame["points"]``; or (xyz, labels) of other points of the same scan,
            of which those with equal coordinates are used; or None, no labels. Default: ``frame[labels]``.
        per: ``point``: one number a point, (sum N,) float32 in the batch, in the order of ``points``.
            ``frame``: one array a frame, equal shapes, (B, ...) in the batch.
        ignore: label of the points without one.
        pasted: class name -> label of the points that gt_sampling pastes in; others are ignored.
        transform: ``transform(array, matrix)`` gives the array of an augmented frame, whose points were
            multiplied by ``matrix`` (4, 4). Needed for ``per="frame"`` with flip, rotation, scaling or
            translation.

    Raises:
        ConfigError: an argument cannot be used, or another class is registered for the section.
    """
    check_head(section, head)
    if labels is None and (read is not None or pasted or transform is not None):
        raise ConfigError(f"add_task({section!r}) got a way to read labels, but no key: pass labels='...'.")
    if labels in OWN_KEYS:
        raise ConfigError(
            f"The labels of {section} must have a key of their own in batch_dict, but got OpenPCDet's "
            f"{labels!r}. Write for example 'point_labels'."
        )
    if per not in ("point", "frame"):
        raise ConfigError(f"per must be 'point' or 'frame', but add_task({section!r}) got {per!r}.")
    spec = None if labels is None else Labels(labels, per, read, ignore, dict(pasted or {}), transform)
    for other in registered():
        if spec is not None and other.labels is not None and other.section != section:
            _check_same_labels(spec, other.labels)
    _tasks[section] = Task(section, head, spec)


def check_head(section: str, head: type[nn.Module]) -> None:
    """Raise ConfigError unless ``head`` can be registered for ``section``."""
    if not re.fullmatch(r"[A-Z][A-Z0-9_]*", section) or section in OWN_SECTIONS:
        raise ConfigError(
            f"The section of a task must be in capitals and none of OpenPCDet's own, but got {section!r}. "
            "Write for example 'SEGMENT_HEAD'."
        )
    is_head = isinstance(head, type) and issubclass(head, nn.Module)
    if not is_head or not callable(getattr(head, "get_loss", None)):
        raise ConfigError(
            f"The head of {section} must be a torch.nn.Module class with get_loss, but got {head!r}."
        )
    known = _tasks.get(section)
    # a file that is imported twice registers two classes of one name
    if known is not None and known.head.__qualname__ != head.__qualname__:
        raise ConfigError(
            f"{section} can have one head, but {known.head.__qualname__} is registered for it and "
            f"{head.__qualname__} was passed. Choose another section."
        )


def _check_same_labels(new: Labels, old: Labels) -> None:
    if new.key == old.key and new != old:
        raise ConfigError(
            f"Two tasks that share the labels {new.key!r} must read them in the same way. Pass the same "
            "arguments to both calls of add_task, or another key."
        )


def registered() -> tuple[Task, ...]:
    """The tasks, in the order in which they were added."""
    return tuple(_tasks.values())


def put_back(tasks: Iterable[Task]) -> None:
    """Register ``tasks`` again, except for sections that have a task."""
    for task in tasks:
        _tasks.setdefault(task.section, task)


def clear() -> None:
    """Forget all tasks."""
    _tasks.clear()
