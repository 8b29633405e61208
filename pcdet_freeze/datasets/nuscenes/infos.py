"""Tables -> one info a sample, with OpenPCDet's keys, so that its files can be read here and ours there.

Ours has further keys: ``sample_data_token``, ``scene``, ``location`` and, where there are point labels,
``lidarseg_path``. Metres and seconds; boxes lie in the frame of the LiDAR (x right, y forward, z up).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.poses import rotation_matrices
from pcdet_freeze.datasets.nuscenes.classes import detection_name
from pcdet_freeze.datasets.nuscenes.tables import CAMERA, LIDAR, Row, Tables
from pcdet_freeze.errors import DataError

Info = dict[str, Any]
MICROSECOND = 1e-6
MOST_SECONDS = 1.5
"""between two annotations of an object that give a velocity"""


def sample_info(tables: Tables, sample: Row, max_sweeps: int) -> Info:
    """Info of a row of ``sample``; its ``sweeps`` are the ``max_sweeps - 1`` before it, from new to old.

    At the beginning of a scene the oldest sweep is repeated. Without any annotation in the tables it has no
    boxes. Raises DataError for tables that do not fit.
    """
    token = sample["token"]
    newest = tables.key_frames.get((token, LIDAR))
    if newest is None:
        raise DataError(f"{tables.folder}/sample_data.json: sample {token} has no annotated {LIDAR} sweep")
    car_from_ref = _matrix(tables.get("calibrated_sensor", newest["calibrated_sensor_token"]))
    global_from_car = _matrix(tables.pose_of(newest))
    ref_from_car, car_from_global = np.linalg.inv(car_from_ref), np.linalg.inv(global_from_car)
    ref_from_global = ref_from_car @ car_from_global
    info: Info = {
        "lidar_path": newest["filename"],
        **_camera(tables, token),
        "token": token,
        "sweeps": _sweeps(tables, newest, ref_from_global, max_sweeps - 1),
        "ref_from_car": ref_from_car,
        "car_from_global": car_from_global,
        "timestamp": MICROSECOND * newest["timestamp"],
        "sample_data_token": newest["token"],
        "scene": tables.get("scene", sample["scene_token"])["name"],
        "location": tables.location_of(sample),
    }
    if newest["token"] in tables.lidarseg:
        info["lidarseg_path"] = tables.lidarseg[newest["token"]]
    if not tables.annotations:  # of the version v1.0-test
        return info
    return info | _boxes(tables, token, ref_from_global)


def _matrix(pose: Row) -> np.ndarray:
    """(4, 4) outer_from_inner of a row with ``rotation`` (w, x, y, z) and ``translation``."""
    found = np.eye(4)
    found[:3, :3] = rotation_matrices(np.array([pose["rotation"]]))[0]
    found[:3, 3] = pose["translation"]
    return found


def _camera(tables: Tables, sample: str) -> Info:
    image = tables.key_frames.get((sample, CAMERA))
    if image is None:
        return {}
    intrinsic = tables.get("calibrated_sensor", image["calibrated_sensor_token"])["camera_intrinsic"]
    return {"cam_front_path": image["filename"], "cam_intrinsic": np.array(intrinsic, np.float64)}


def _sweeps(tables: Tables, newest: Row, ref_from_global: np.ndarray, number: int) -> list[Info]:
    """The sweeps before ``newest``; ``transform_matrix`` (4, 4) moves their points into its frame."""
    first: Info = {
        "lidar_path": newest["filename"],
        "sample_data_token": newest["token"],
        "transform_matrix": None,
        "time_lag": 0.0,
    }
    older = sweeps_before(tables, newest, number)
    found = [_sweep(tables, current, newest, ref_from_global) for current in older]
    return found + [found[-1] if found else first] * (number - len(found))


def sweeps_before(tables: Tables, newest: Row, number: int) -> list[Row]:
    """The rows of at most ``number`` sweeps before ``newest``, from new to old."""
    found: list[Row] = []
    current = newest
    while len(found) < number and current["prev"]:
        current = tables.sweep_before(current)
        found.append(current)
    return found


def _sweep(tables: Tables, current: Row, newest: Row, ref_from_global: np.ndarray) -> Info:
    global_from_car = _matrix(tables.pose_of(current))
    car_from_current = _matrix(tables.get("calibrated_sensor", current["calibrated_sensor_token"]))
    return {
        "lidar_path": current["filename"],
        "sample_data_token": current["token"],
        "transform_matrix": ref_from_global @ global_from_car @ car_from_current,
        "global_from_car": global_from_car,
        "car_from_current": car_from_current,
        "time_lag": MICROSECOND * (newest["timestamp"] - current["timestamp"]),
    }


def _boxes(tables: Tables, sample: str, ref_from_global: np.ndarray) -> Info:
    """gt_boxes (K, 9), velocities and points of all boxes that a LiDAR or radar point lies in."""
    rows = [
        row for row in tables.annotations.get(sample, []) if row["num_lidar_pts"] + row["num_radar_pts"] > 0
    ]
    turn = ref_from_global[:3, :3]
    centres = _array([row["translation"] for row in rows], 3) @ turn.T + ref_from_global[:3, 3]
    sizes = _array([row["size"] for row in rows], 3)[:, [1, 0, 2]]  # width, length, height in the tables
    axes = turn @ rotation_matrices(_array([row["rotation"] for row in rows], 4))
    headings = np.arctan2(axes[:, 1, 0], axes[:, 0, 0])
    velocities = _array([_velocity(tables, row) for row in rows], 3) @ turn.T
    return {
        "gt_boxes": np.column_stack([centres, sizes, headings, velocities[:, :2]]),
        "gt_boxes_velocity": velocities,
        "gt_names": np.array([detection_name(tables.category_of(row)) for row in rows], dtype=str),
        "gt_boxes_token": np.array([row["token"] for row in rows], dtype=str),
        "num_lidar_pts": np.array([row["num_lidar_pts"] for row in rows], np.int64),
        "num_radar_pts": np.array([row["num_radar_pts"] for row in rows], np.int64),
    }


def _array(rows: list[Any], columns: int) -> np.ndarray:
    return np.array(rows, np.float64).reshape(-1, columns)


def _velocity(tables: Tables, row: Row) -> np.ndarray:
    """(3,) m/s in the global frame between the annotations before and after; NaN where there is none.

    As the devkit defines it: a longer time than MOST_SECONDS a step gives no velocity, nor do two
    annotations of one time.
    """
    annotations = tables.table("sample_annotation")
    first = annotations.get(row["prev"], row)
    last = annotations.get(row["next"], row)
    if first is last:
        return np.full(3, np.nan)
    ends = [MICROSECOND * tables.get("sample", end["sample_token"])["timestamp"] for end in (first, last)]
    steps = 2 if first is not row and last is not row else 1
    if not 0 < ends[1] - ends[0] <= steps * MOST_SECONDS:
        return np.full(3, np.nan)
    return (np.array(last["translation"]) - np.array(first["translation"])) / (ends[1] - ends[0])
