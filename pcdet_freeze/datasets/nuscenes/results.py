"""Predictions as nuScenes' result files have them: boxes in the global frame, with an attribute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.argoverse2.poses import Pose, quaternion_of
from pcdet_freeze.datasets.file_formats.files import replacing
from pcdet_freeze.datasets.nuscenes.classes import attribute_of
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside

MOST_BOXES = 500
"""of a sample; those with the highest scores are kept"""
META = {
    "use_camera": False,
    "use_lidar": True,
    "use_radar": False,
    "use_map": False,
    "use_external": False,
}


def box_rows(anno: Mapping[str, Any], token: str, global_from_frame: Pose) -> list[dict[str, Any]]:
    """The boxes of ``anno``: boxes_lidar (K, 7 or 9), name, score; without velocity they stand still."""
    best = np.argsort(-np.asarray(anno["score"]), kind="stable")[:MOST_BOXES]
    turn = global_from_frame.rotation
    rows = []
    for k in best.tolist():
        x, y, z, length, width, height, heading, *rest = np.asarray(anno["boxes_lidar"][k], np.float64)
        velocity = turn @ np.array([*(rest or (0.0, 0.0)), 0.0])
        cos, sin = np.cos(heading), np.sin(heading)
        upright = np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])
        rows.append(
            {
                "sample_token": token,
                "translation": (turn @ np.array([x, y, z]) + global_from_frame.translation).tolist(),
                "size": [float(width), float(length), float(height)],
                "rotation": quaternion_of(turn @ upright).tolist(),
                "velocity": velocity[:2].tolist(),
                "detection_name": str(anno["name"][k]),
                "detection_score": float(anno["score"][k]),
                "attribute_name": attribute_of(str(anno["name"][k]), velocity[:2]),
            }
        )
    return rows


def result_file(rows: Mapping[str, list[dict[str, Any]]]) -> bytes:
    """The JSON of a result file: token of a sample -> its boxes."""
    return json.dumps({"meta": META, "results": dict(rows)}).encode()


def write_frame(folder: Path, frame: tuple[str, list[dict[str, Any]]]) -> None:
    """Write the boxes of one sample as ``<token>.json``."""
    token, rows = frame
    with replacing(inside(folder, f"{token}.json", "the frame's file"), sync=False) as write:
        write(json.dumps(rows).encode())


def write_submission(folder: str | Path, out: str | Path) -> int:
    """Join the frames that ``--save_to_file`` wrote to ``folder`` into one result file; returns how many.

    Raises DataError where the folder has none, or where one is broken.
    """
    files = sorted(Path(folder).glob("*.json"))
    if not files:
        raise DataError(f"{folder}: has no <token>.json; evaluate with --save_to_file first")
    rows = {file.stem: _rows_of(file) for file in files}
    with replacing(Path(out)) as write:
        write(result_file(rows))
    return len(rows)


def _rows_of(file: Path) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = json.loads(file.read_bytes())
        if not isinstance(rows, list):
            raise ValueError(f"a list of boxes is expected; got {type(rows).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file}: not a file of --save_to_file ({error}). Evaluate again") from error
    return rows
