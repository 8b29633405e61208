"""Labels and points of the segmentation loss: which points count, and means of their columns over a cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.errors import DataError
from pcdet_freeze.models.partial_labels import frame_names, labelled_frames
from pcdet_freeze.models.task_heads.segment_settings import WHERE
from pcdet_freeze.ops.bev_cells import IGNORE, count_each
from pcdet_freeze.utils.devices import host_copy, send_together


def targets_of(
    batch_dict: dict[str, Any], samples: int, classes: int, count_points: bool
) -> tuple[Tensor, list[int]]:
    """(N,) labels, 255 in unlabelled frames, and with ``count_points`` the number of points of each frame.

    Raises DataError if the labels are invalid or all ignored.
    """
    points, frames = batch_dict["points"], labelled_frames(batch_dict, "point_labels", WHERE)
    sizes: list[int] = []
    if count_points:
        sizes = host_copy(points)[:, 0].long().bincount(minlength=samples).tolist()
    if "point_labels" not in batch_dict:
        return torch.full((len(points),), IGNORE, device=points.device), sizes
    labels = batch_dict["point_labels"]
    if labels.shape != points.shape[:1]:
        raise DataError(
            f"{WHERE} needs one label per point; the batch has {len(points)} points and point_labels of "
            f"shape {tuple(labels.shape)}"
        )
    _check_labels(batch_dict, host_copy(points)[:, 0], host_copy(labels), classes)
    labels = labels.long()
    return (labels if frames is None else _of_labelled(labels, points[:, 0], frames)), sizes


def _check_labels(batch_dict: dict[str, Any], samples: Tensor, labels: Tensor, classes: int) -> None:
    """Raise DataError if ``labels`` (N,) are no classes, or all ignored; they are on the CPU, as are the
    numbers of their ``samples`` (N,)."""
    flags = labelled_frames(batch_dict, "point_labels", WHERE)
    flags = None if flags is None else host_copy(flags)
    labels = labels.long() if flags is None else _of_labelled(labels.long(), samples, flags)
    wrong = (labels != IGNORE) & ((labels < 0) | (labels >= classes))
    if bool(wrong.any()):
        found = torch.unique(labels[wrong])[:8].tolist()
        inside = samples[wrong].long().bincount(minlength=int(batch_dict["batch_size"])) > 0
        raise DataError(
            f"point_labels must be 0..{classes - 1} or {IGNORE} (ignore); got {found} in the "
            f"frames {frame_names(batch_dict, inside)}: map them to the classes of {WHERE}"
        )
    if len(labels) and bool((labels == IGNORE).all()) and (flags is None or bool(flags.any())):
        raise DataError(
            f"{WHERE} needs labelled points, but all point_labels are {IGNORE} (ignore) in the frames "
            f"{frame_names(batch_dict, flags)}. Remove these labels, or remove the frames."
        )


def _of_labelled(labels: Tensor, samples: Tensor, flags: Tensor) -> Tensor:
    """``labels`` (N,), 255 in the samples without flag (B,)."""
    return torch.where(flags[samples.long()], labels, IGNORE)


def evenly_spaced(frames: Tensor, sizes: list[int], most: int | None) -> Tensor:
    """Indices of at most ``most`` points of each frame, evenly spaced; None: of all points.

    Args:
        frames: (N,) int64, frame of each point.
        sizes: number of points of each frame; empty without ``most``.
    """
    if most is None or max(sizes, default=0) <= most:
        return torch.arange(len(frames), device=frames.device)
    on_host = [torch.tensor([min(number, most) for number in sizes]), torch.tensor(sizes)]
    kept, size = send_together(on_host, frames.device)
    total = sum(min(number, most) for number in sizes)
    place = torch.arange(total, device=frames.device)
    frame = torch.bucketize(place, kept.cumsum(dim=0), right=True)
    within = (place - (kept.cumsum(dim=0) - kept)[frame]) * size[frame] // kept[frame]
    return frames.argsort(stable=True)[(size.cumsum(dim=0) - size)[frame] + within]


@torch.no_grad()
def cell_means(columns: Tensor, cells: Tensor, count: int) -> Tensor:
    """(N, C): mean of ``columns`` (N, C) over all points in the cell of each point.

    Sums are in fixed point with 1/65536 resolution, so that the result does not depend on the order of
    summation and is deterministic on a GPU too.

    Args:
        cells: (N,) int64 in 0..count - 1.
        count: number of cells.
    """
    if len(cells) == 0:
        return columns
    whole = (columns.double() * 65536).round().long()
    total = whole.new_zeros(count, columns.shape[1]).index_add_(0, cells, whole)
    points = count_each(cells, count)
    return (total / (65536.0 * points.clamp(min=1).unsqueeze(1)))[cells].to(columns.dtype)
