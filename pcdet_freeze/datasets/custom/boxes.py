"""Label files of OpenPCDet's custom layout: ``x y z dx dy dz heading class``, a box a line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.boxes import box_fault
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError

NUMBERS = 7
DONT_CARE = "DontCare"
RULE = "a label line is `x y z dx dy dz heading class`, metres and radians, the centre in the box middle"
AGAIN = "write the info files anew with `pcdet-freeze prepare custom`"


def read_boxes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Boxes (K, 7) float32 and names (K,) of a label file, without DontCare; a name may have several words.

    Raises DataError that names file and line.
    """
    try:
        lines = timed(path, path.read_text).splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the label file cannot be read ({error})") from error
    rows = [_parse(f"{path}, line {n}", line) for n, line in enumerate(lines, 1) if line.strip()]
    rows = [row for row in rows if row[0] != DONT_CARE]
    boxes = np.array([numbers for _, numbers in rows], np.float64).reshape(-1, NUMBERS)
    return boxes.astype(np.float32), np.array([name for name, _ in rows], dtype=str)


def _parse(place: str, line: str) -> tuple[str, list[float]]:
    words = line.split()
    try:
        numbers = [float(word) for word in words[:NUMBERS]]
    except ValueError as error:
        raise DataError(f"{place}: {RULE}; {error}: {line!r}") from error
    name = " ".join(words[NUMBERS:])
    if not name:
        raise DataError(f"{place}: {RULE}; got {len(words)} words: {line!r}")
    if _is_number(words[-1]):
        raise DataError(f"{place}: {RULE}; the class comes last, but the line ends with a number: {line!r}")
    if not name.isprintable() or "/" in name or "\\" in name:
        raise DataError(f"{place}: a class must be a name without / and \\: {line!r}")
    row = np.array([numbers])
    if name != DONT_CARE and (fault := box_fault(row[:, :3], row[:, 3:6], row[:, 6])):
        raise DataError(f"{place}: {fault.replace('box 0', 'a box')}: {line!r}")
    return name, numbers


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def boxes_of(annos: Any, frame: str) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Boxes (K, 7) float32, names (K,) and points a box (K,) or None of ``annos`` in an info, less DontCare.

    Raises DataError that names the frame: a key that is missing, shapes that do not fit.
    """
    try:
        if not isinstance(annos, Mapping):
            raise ValueError(f"a mapping is expected; got {type(annos).__name__}")
        names = np.asarray(annos["name"], None if len(annos["name"]) else str)
        boxes = np.asarray(annos["gt_boxes_lidar"], np.float32)
        boxes = boxes.reshape(len(names), -1) if len(names) else np.zeros((0, NUMBERS), np.float32)
        if names.ndim != 1 or names.dtype.kind != "U" or boxes.shape[1] < NUMBERS:
            raise ValueError(f"{len(names)} names ({names.dtype}), but boxes of shape {boxes.shape}")
        counts = annos.get("num_points_in_gt")
        counts = None if counts is None else np.asarray(counts, np.int64).reshape(len(names))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DataError(f"frame {frame}: the annos of its info are broken ({error}); {AGAIN}") from error
    real = names != DONT_CARE
    return boxes[real, :NUMBERS], names[real], None if counts is None else counts[real]
