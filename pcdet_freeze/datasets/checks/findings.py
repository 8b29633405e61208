"""Judge a few frames of a data set, and say what their files look like."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pcdet_freeze.datasets.checks.kinds import kind_of
from pcdet_freeze.datasets.checks.layout import Layout, other_layout
from pcdet_freeze.errors import DataError

FRAMES = 5
"""frames that are judged, evenly spaced"""
_MOST_BYTES = 2**22
_SEEN = 0.01
_COLUMN = 3
_LARGE = 128.0
"""no intensity of 0 to 1, and no height, is so large"""


@dataclass(frozen=True)
class Finding:
    """What the files of a data set look like, where it is not what the config says.

    ``serious``: training on them would be nonsense.
    """

    text: str
    serious: bool = False


def check_frames(
    read: Callable[[int], bytes | None], frames: int, columns: int, limits: Sequence[float]
) -> list[Finding]:
    """Judge the point files of ``FRAMES`` of ``frames`` frames.

    Args:
        read: index -> the bytes of a point file; None where it cannot be read (which is no matter of this).
        columns: float32 numbers of a point.
        limits: POINT_CLOUD_RANGE (6,) in metres.
    """
    chosen = np.unique(np.linspace(0, frames - 1, min(FRAMES, frames)).astype(int)) if frames else []
    files = [raw[:_MOST_BYTES] for index in chosen if (raw := read(int(index)))]
    if not files:
        return []
    kinds = [kind for kind in map(kind_of, files) if kind]
    if len(kinds) * 2 > len(files):
        return [Finding(f"{len(kinds)} of {len(files)} point files look like {kinds[0]}", serious=True)]
    found = [layout for layout in (other_layout(raw, columns) for raw in files) if layout is not None]
    if len(found) * 2 > len(files):
        return [Finding(_layout_text(found, len(files), columns), serious=True)]
    clouds = [_points(raw, columns) for raw in files if not kind_of(raw)]
    return _of_points(np.concatenate(clouds), np.asarray(limits)) if clouds else []


def _layout_text(found: list[Layout], files: int, columns: int) -> str:
    names = {3: "x, y, z", 4: "x, y, z, intensity", 5: "x, y, z, intensity, ring or time"}
    what = names.get(found[0].columns, "")
    return (
        f"{len(found)} of {files} point files look like {found[0]}{f' ({what})' if what else ''}, but are "
        f"read as {columns} columns of float32"
    )


def _points(raw: bytes, columns: int) -> np.ndarray:
    row = 4 * columns
    return np.frombuffer(raw[: len(raw) // row * row], "<f4").reshape(-1, columns)


def _of_points(points: np.ndarray, limits: np.ndarray) -> list[Finding]:
    points = points[np.isfinite(points).all(axis=1)]
    if not len(points):
        return []
    found = []
    inside = ((points[:, :3] >= limits[:3]) & (points[:, :3] <= limits[3:])).all(axis=1).mean()
    far = float(np.median(np.abs(points[:, :2])))
    if inside < _SEEN:
        unit = ": are they millimetres, or map coordinates?" if far > 500 else ""
        found.append(Finding(f"{inside:.2%} of the points lie in POINT_CLOUD_RANGE{unit}", serious=far > 500))
    if points.shape[1] > _COLUMN:
        found += _of_intensity(points[:, _COLUMN])
    return found


def _of_intensity(column: np.ndarray) -> list[Finding]:
    """A column of whole numbers is an intensity of eight bits or more, or the number of a ring."""
    most, whole = float(column.max()), bool((column == np.round(column)).all())
    if not whole or most <= 1:
        large = f"column {_COLUMN} holds values up to {most:g}; an intensity is expected from 0 to 1"
        return [Finding(large)] if most > _LARGE else []
    known = next((limit for limit in (255, 65535) if most <= limit), most)
    what = "the number of a laser ring" if most < 128 else f"an intensity from 0 to {known:g}"
    return [Finding(f"column {_COLUMN} holds whole numbers up to {most:g}: it looks like {what}")]


def raise_or_warn(findings: Sequence[Finding], where: str, log: logging.Logger, strict: bool) -> None:
    """Log each finding; DataError for a serious one if ``strict``."""
    for finding in findings:
        if finding.serious and strict:
            raise DataError(
                f"{where}: {finding.text}. Convert the files, or correct DATA_CONFIG; if they are right as "
                "they are, set DATA_CONFIG.ON_IMPLAUSIBLE: warn"
            )
        log.warning("%s: %s", where, finding.text)
