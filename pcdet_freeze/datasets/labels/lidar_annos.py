"""Boxes of the LiDAR frame as KITTI annotation dicts, and back in name only: there is no camera.

The "camera" is the LiDAR with its axes renamed: x right = -y, y down = -z, z forward = x, so KITTI's bird's
eye and 3D overlaps are those of the LiDAR boxes. ``bbox`` is the box's extent in azimuth, ten pixels a
degree, with a nominal height of 50 pixels that no difficulty rejects; the image AP says little here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.datasets.boxes import rows_of
from pcdet_freeze.utils.untrusted_files.inside import inside

BOX_HEIGHT_PIXELS = 50.0
PIXELS_A_DEGREE = 10.0

Anno = dict[str, Any]


def boxes_to_anno(boxes: NDArray[np.floating], names: NDArray[np.str_], frame_id: str) -> Anno:
    """Annotation columns of (K, 7+) LiDAR boxes: location is the bottom's centre, dimensions l, h, w."""
    boxes = rows_of(boxes)
    x, y, z, length, width, height, heading = boxes[:, :7].T
    rotation_y = _wrap(-heading - np.pi / 2)
    return {
        "name": np.asarray(names, dtype=str),
        "truncated": np.zeros(len(boxes)),
        "occluded": np.zeros(len(boxes), np.int64),
        "alpha": _wrap(rotation_y - np.arctan2(-y, x)),
        "bbox": azimuth_boxes(boxes),
        "dimensions": np.stack([length, height, width], axis=1),
        "location": np.stack([-y, height / 2 - z, x], axis=1),
        "rotation_y": rotation_y,
        "boxes_lidar": boxes,
        "frame_id": frame_id,
    }


def azimuth_boxes(boxes: NDArray[np.floating]) -> NDArray[np.floating]:
    """2D boxes (K, 4) of (K, 7) LiDAR boxes: their extent in azimuth, BOX_HEIGHT_PIXELS high."""
    x, y, length = boxes[:, 0], boxes[:, 1], boxes[:, 3]
    azimuth = np.rad2deg(np.arctan2(-y, x))
    spread = np.rad2deg(np.arctan2(length / 2, np.maximum(np.hypot(x, y), 0.1)))
    left, right = (PIXELS_A_DEGREE * (azimuth + side * spread + 180) for side in (-1, 1))
    return np.stack([left, np.zeros_like(left), right, np.full_like(left, BOX_HEIGHT_PIXELS)], axis=1)


def add_levels(anno: Anno, occluded: Sequence[int] | NDArray[np.int64], num_points: Any) -> Anno:
    """``anno`` with KITTI's ``occluded`` (K,), 3 for what is never counted, and what follows from it.

    ``difficulty`` repeats it as upstream does: 0, 1, 2, or -1.
    """
    anno["occluded"] = np.array(occluded, np.int64)
    anno["difficulty"] = np.where(anno["occluded"] > 2, -1, anno["occluded"])
    anno["num_points_in_gt"] = num_points
    return anno


def in_range(boxes: NDArray[np.floating], limits: NDArray[np.float32]) -> NDArray[np.bool_]:
    """(K,) True where the centre of a box lies in ``limits`` in x and y."""
    return ((boxes[:, :2] >= limits[:2]) & (boxes[:, :2] < limits[3:5])).all(axis=1)


def predicted_annos(
    batch_dict: Mapping[str, Any],
    pred_dicts: Sequence[Mapping[str, Any]],
    class_names: Sequence[str],
    output_path: str | Path | None = None,
) -> list[Anno]:
    """Predictions as annotations, plus score and pred_labels.

    With ``output_path``, each frame is also written there as a KITTI label file.
    """
    annos = []
    for frame_id, prediction in zip(batch_dict["frame_id"], pred_dicts, strict=True):
        labels = prediction["pred_labels"].cpu().numpy()
        names = np.array([class_names[label - 1] for label in labels], dtype=str)
        anno = boxes_to_anno(prediction["pred_boxes"].cpu().numpy(), names, str(frame_id))
        anno.update(score=prediction["pred_scores"].cpu().numpy(), pred_labels=labels)
        if output_path is not None:
            write_kitti_label(anno, Path(output_path))
        annos.append(anno)
    return annos


class LidarAnnos:
    """Mixin of data sets whose predictions are annotations of the LiDAR frame; before the template."""

    def generate_prediction_dicts(
        self,
        batch_dict: dict[str, Any],
        pred_dicts: list[dict[str, Any]],
        class_names: Sequence[str],
        output_path: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Predictions in the frame and with the keys of ``ground_truth_annos``, plus score, pred_labels.

        If ``output_path`` is given, each frame is also written there as a KITTI label file.
        """
        return predicted_annos(batch_dict, pred_dicts, class_names, output_path)


def write_kitti_label(anno: Anno, folder: Path) -> None:
    """Write detections as ``<frame_id>.txt`` in KITTI's label format."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k, name in enumerate(anno["name"]):
        length, height, width = anno["dimensions"][k]
        numbers = (*anno["bbox"][k], height, width, length, *anno["location"][k], anno["rotation_y"][k])
        tail = " ".join(f"{number:.4f}" for number in (*numbers, anno["score"][k]))
        rows.append(f"{name} -1 -1 {anno['alpha'][k]:.4f} {tail}\n")
    inside(folder, f"{anno['frame_id']}.txt", "the frame's file").write_text("".join(rows))


def _wrap(angle: NDArray[np.floating]) -> NDArray[np.floating]:
    return angle - 2 * np.pi * np.floor(angle / (2 * np.pi) + 0.5)
