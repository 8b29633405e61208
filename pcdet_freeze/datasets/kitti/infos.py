"""One frame -> its entry in ``kitti_infos_*.pkl`` and its objects in the ground-truth database.

The keys are OpenPCDet's, so its files can be read here and ours there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.file_formats.files import replacing
from pcdet_freeze.datasets.kitti.boxes import camera_to_lidar
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.kitti.frame_files import NUM_FEATURES, FrameFiles
from pcdet_freeze.datasets.kitti.labels import DONT_CARE, difficulty_of, read_labels
from pcdet_freeze.datasets.labels.lidar_annos import BOX_HEIGHT_PIXELS
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.utils.untrusted_files.inside import inside

DATABASE = "gt_database"
Info = dict[str, Any]


def frame_info(
    files: FrameFiles, frame: str, labelled: bool, needs_image: bool = True
) -> tuple[Info, np.ndarray]:
    """The frame's info and its points (N, 4); DataError names the file that is at fault.

    A frame without an image, where ``needs_image`` allows one, has the image_shape None; all of its points
    count as seen, and its difficulties depend on occlusion and truncation alone.
    """
    points = files.points(frame)
    calib = files.calibration(frame)
    shape = files.image_shape(frame) if needs_image or has_image(files, frame) else None
    info: Info = {
        "point_cloud": {"num_features": NUM_FEATURES, "lidar_idx": frame},
        "image": {"image_idx": frame, "image_shape": shape},
        "calib": calib.to_info(),
    }
    if labelled:
        annos = read_labels(files.label_path(frame))
        if shape is None:
            tall = np.tile(np.array([0, 0, 0, BOX_HEIGHT_PIXELS], np.float32), (len(annos["name"]), 1))
            annos["difficulty"] = difficulty_of(tall, annos["occluded"], annos["truncated"])
        _add_boxes(annos, calib, points if shape is None else points[calib.in_image(points, shape)])
        info["annos"] = annos
    return info, points


def has_image(files: FrameFiles, frame: str) -> bool:
    """Whether the frame's image is there."""
    path = files.image_path(frame)
    return timed(path, path.is_file)


def _add_boxes(annos: dict[str, Any], calib: Calibration, visible: np.ndarray) -> None:
    """Add gt_boxes_lidar (G, 7), index (K,) and num_points_in_gt (K,); the latter two are -1 for DontCare."""
    total, objects = len(annos["name"]), int(np.sum(annos["name"] != DONT_CARE))
    boxes = camera_to_lidar(
        annos["location"][:objects], annos["dimensions"][:objects], annos["rotation_y"][:objects], calib
    )
    annos["gt_boxes_lidar"] = boxes
    annos["index"] = np.full(total, -1, np.int32)
    annos["index"][:objects] = np.arange(objects)
    annos["num_points_in_gt"] = np.full(total, -1, np.int32)
    annos["num_points_in_gt"][:objects] = points_in_boxes_mask(visible, boxes, margin=0.0).sum(axis=1)


def write_objects(out: Path, info: Info, points: np.ndarray) -> list[Info]:
    """Write each object's points, relative to the middle of its box, and return the database's entries."""
    annos, frame = info["annos"], info["point_cloud"]["lidar_idx"]
    boxes = annos["gt_boxes_lidar"]
    entries = []
    for number, (box, covered) in enumerate(zip(boxes, points_in_boxes_mask(points, boxes), strict=True)):
        name = str(annos["name"][number])
        path = f"{DATABASE}/{frame}_{name}_{number}.bin"
        cloud = points[covered]
        cloud[:, :3] -= box[:3]
        with replacing(inside(out, path, "an object's file"), sync=False) as write:
            write(cloud.astype("<f4").tobytes())
        entries.append(
            {
                "name": name,
                "path": path,
                "image_idx": frame,
                "gt_idx": number,
                "box3d_lidar": box,
                "num_points_in_gt": len(cloud),
                "difficulty": annos["difficulty"][number],
                "bbox": annos["bbox"][number],
                "score": annos["score"][number],
            }
        )
    return entries
