"""KITTI label files: ``type truncated occluded alpha x1 y1 x2 y2 h w l x y z rotation_y [score]`` a line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.boxes import FARTHEST, LARGEST, SMALLEST
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError

DONT_CARE = "DontCare"
HUGE = 1e6
"""no number of a label is larger"""
_FIELDS = (15, 16)
_LEVELS = ((40.0, 0, 0.15), (25.0, 1, 0.30), (25.0, 2, 0.50))  # least height, most occlusion, most truncation


def read_labels(path: Path) -> dict[str, Any]:
    """Annotations of one frame; DontCare regions come last, as info files want them.

    Returns name (K,) str, truncated, occluded, alpha, rotation_y, score (K,) float64, bbox (K, 4) float32
    pixels, dimensions (K, 3) [l, h, w] and location (K, 3) float32 metres in the rectified camera frame,
    difficulty (K,) int32. Raises DataError naming file and line for a line that does not parse.
    """
    try:
        lines = timed(path, path.read_text).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the label file cannot be read ({error})") from error
    rows = [_parse(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    rows.sort(key=lambda row: row[0] == DONT_CARE)
    return _annos([name for name, _ in rows], np.array([values for _, values in rows]).reshape(-1, 15))


def _parse(place: str, line: str) -> tuple[str, list[float]]:
    words = line.split()
    if len(words) not in _FIELDS:
        raise DataError(f"{place}: a label line has 15 fields (16 with a score); got {len(words)}: {line!r}")
    try:
        values = [float(word) for word in words[1:]]
    except ValueError as error:
        raise DataError(f"{place}: the fields after the type must be numbers ({error}): {line!r}") from error
    if not all(map(math.isfinite, values)):
        raise DataError(f"{place}: the numbers of a label must be finite: {line!r}")
    if not words[0].isprintable() or "/" in words[0] or "\\" in words[0]:
        raise DataError(f"{place}: the type of an object must be a name without / and \\: {line!r}")
    if words[0] != DONT_CARE and not SMALLEST <= min(values[7:10]) <= max(values[7:10]) <= LARGEST:
        raise DataError(
            f"{place}: height, width and length must be positive ({SMALLEST} to {LARGEST:g} m); got "
            f"{values[7:10]}: {line!r}"
        )
    if max(map(abs, values[10:13])) > FARTHEST or max(map(abs, values)) > HUGE:
        raise DataError(
            f"{place}: an object must lie within {FARTHEST:g} m, with an angle in radians: {line!r}"
        )
    return words[0], values if len(values) == 15 else [*values, -1.0]


def _annos(names: Sequence[str], values: np.ndarray) -> dict[str, Any]:
    annos = {
        "name": np.array(names, dtype=str),
        "truncated": values[:, 0],
        "occluded": values[:, 1],
        "alpha": values[:, 2],
        "bbox": values[:, 3:7].astype(np.float32),
        "dimensions": values[:, [9, 7, 8]],
        "location": values[:, 10:13].astype(np.float32),
        "rotation_y": values[:, 13],
        "score": values[:, 14],
    }
    annos["difficulty"] = difficulty_of(annos["bbox"], annos["occluded"], annos["truncated"])
    return annos


def difficulty_of(bbox: np.ndarray, occluded: np.ndarray, truncated: np.ndarray) -> np.ndarray:
    """0 easy, 1 moderate, 2 hard, -1 none of them, (K,) int32; the limits are the devkit's.

    As in OpenPCDet's info files the height counts both border rows: v2 - v1 + 1 pixels.
    """
    height = bbox[:, 3].astype(np.float64) - bbox[:, 1].astype(np.float64) + 1
    level = np.full(len(bbox), -1, np.int32)
    for number, (least, occlusion, truncation) in reversed(list(enumerate(_LEVELS))):
        level[(height >= least) & (occluded <= occlusion) & (truncated <= truncation)] = number
    return level


def label_line(anno: dict[str, Any], index: int) -> str:
    """Detection ``index`` of an annotation dict as a line of a KITTI result file."""
    length, height, width = anno["dimensions"][index]
    numbers = [
        anno["alpha"][index],
        *anno["bbox"][index],
        height,
        width,
        length,
        *anno["location"][index],
        anno["rotation_y"][index],
        anno["score"][index],
    ]
    return " ".join([str(anno["name"][index]), "-1 -1", *(f"{number:.4f}" for number in numbers)])
