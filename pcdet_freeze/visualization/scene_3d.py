"""What a 3D view shows of a scene, as arrays: colours of points, lines of boxes, text; needs no viewer.

Frame: LiDAR, x forward, y left, z up; metres.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

from pcdet_freeze.ops.boxes import boxes_to_corners_3d
from pcdet_freeze.visualization.bev import (
    BOX_COLORS,
    CHANGED_COLOR,
    FRONT,
    KEPT_COLOR,
    ColorBy,
    Style,
    color_of,
    name_of,
)
from pcdet_freeze.visualization.scene import NO_CLASS, Part, Scene

MAX_POINTS = 300_000
"""a larger cloud is drawn as a random subset of this size; the model gets all of its points"""
VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")
"""the colour map of the pictures at nine places, for an environment without matplotlib"""
LABEL_COLOR = "#202020"
"""of labelled boxes that lie over predicted ones"""
_EDGES = [(i, (i + 1) % 4) for i in range(4)]
EDGES = np.array([*_EDGES, *((a + 4, b + 4) for a, b in _EDGES), *((i, i + 4) for i in range(4))])
"""(12, 2) corners that the edges of a box join"""
TICKS = 8


def rgb(color: str) -> np.ndarray:
    """``#rrggbb`` as (3,) uint8."""
    return np.array([int(color[place : place + 2], 16) for place in (1, 3, 5)], np.uint8)


def drawn_points(points: np.ndarray, limit: int = MAX_POINTS) -> np.ndarray:
    """Rows of the points (N, 3 or more) to draw: those that are finite, and a random ``limit`` of more."""
    rows = np.flatnonzero(np.isfinite(points[:, :3]).all(axis=1))
    if len(rows) <= limit:
        return rows
    return np.sort(np.random.default_rng(0).choice(rows, limit, replace=False))


@dataclass
class PointColors:
    """Colours of points, and what they mean."""

    rgb: np.ndarray
    """(N, 3) uint8"""
    by: ColorBy
    """what they show: the height where the scene lacks what was asked for"""
    low: float = 0.0
    """height in metres, or intensity, of the first colour of VIRIDIS; 2 % of the points are below it"""
    high: float = 0.0
    """that of its last colour"""


def point_colors(scene: Scene, rows: np.ndarray, by: ColorBy) -> PointColors:
    """Colours of the points ``rows`` of a scene, as in the pictures."""
    if by == "class" and scene.point_classes is not None:
        table = np.stack([rgb(color_of(number)) for number in range(NO_CLASS + 1)])
        return PointColors(table[np.clip(scene.point_classes[rows], 0, NO_CLASS)], "class")
    shown: ColorBy = "height"
    values = scene.points[rows, 2]
    if by == "intensity" and scene.intensity is not None:
        shown, values = "intensity", scene.intensity[rows]
    if not len(rows):
        return PointColors(np.zeros((0, 3), np.uint8), shown)
    values = np.asarray(values, np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, [2, 98]).tolist() if len(finite) else (0.0, 0.0)
    values = np.nan_to_num(values, nan=low, posinf=high, neginf=low)
    return PointColors(ramp((values - low) / max(high - low, 1e-6)), shown, low, high)


def ramp(shares: np.ndarray) -> np.ndarray:
    """Colours (N, 3) uint8 of VIRIDIS at ``shares`` (N,) of its length."""
    table = np.stack([rgb(color) for color in VIRIDIS]).astype(np.float64)
    places = np.linspace(0, 1, len(table))
    channels = [np.interp(shares, places, table[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=1).round().astype(np.uint8)


def box_lines(boxes: np.ndarray) -> np.ndarray:
    """Lines (K, 13, 2, 3) of boxes (K, 7 or more): 12 edges, and one from the centre through the front."""
    corners = boxes_to_corners_3d(np.asarray(boxes[:, :7], np.float64).reshape(-1, 7))
    front = corners[:, [*FRONT, *(corner + 4 for corner in FRONT)]].mean(axis=1)
    centre = corners.mean(axis=1)
    heading = np.stack([centre, front + 0.3 * (front - centre)], axis=1)
    return np.concatenate([corners[:, EDGES], heading[:, None]], axis=1)


def box_groups(part: Part, style: Style, by_state: bool = False, over: bool = False) -> list[tuple[str, str]]:
    """The group of each box, by which it is coloured: name and colour.

    Args:
        by_state: green where both checkpoints have the box with equal bits, red elsewhere; else by class.
        over: labels that lie over predictions have one colour.
    """
    if by_state and part.kept is not None:
        return [("kept", KEPT_COLOR) if kept else ("changed", CHANGED_COLOR) for kept in part.kept.tolist()]
    if over and part.scene.scores is None:
        return [("labels", LABEL_COLOR)] * len(part.scene.boxes)
    numbers = (part.scene.labels - 1).tolist()
    return [(name_of(style.class_names, number), color_of(number, BOX_COLORS)) for number in numbers]


def box_name(scene: Scene, number: int, class_names: Sequence[str]) -> str:
    """``Car 0.91``: class and score of a box."""
    name = name_of(class_names, int(scene.labels[number]) - 1)
    return name if scene.scores is None else f"{name} {scene.scores[number]:.2f}"


def box_text(part: Part, number: int, class_names: Sequence[str]) -> str:
    """What is known of a box, in a sentence."""
    x, y, z, length, width, height, heading = part.scene.boxes[number, :7].tolist()
    degrees = (np.degrees(heading) + 180) % 360 - 180
    state = "" if part.kept is None else (", kept" if part.kept[number] else ", changed")
    return (
        f"{part.name}: {box_name(part.scene, number, class_names)}{state}, at x {x:.1f}, y {y:.1f}, "
        f"z {z:.1f} m, {length:.1f} x {width:.1f} x {height:.1f} m, heading {degrees:.0f} degrees"
    )


def quaternions(headings: np.ndarray) -> np.ndarray:
    """Rotations (K, 4) about z: w, x, y, z."""
    half = np.asarray(headings, np.float64) / 2
    zero = np.zeros_like(half)
    return np.stack([np.cos(half), zero, zero, np.sin(half)], axis=1)


def line_segments(line: np.ndarray, z: float) -> np.ndarray:
    """Segments (n - 1, 2, 3) of a line (n, 2) at the height ``z``."""
    points = np.column_stack([line[:, :2], np.full(len(line), z)])
    return np.stack([points[:-1], points[1:]], axis=1)


def ground_of(points: np.ndarray, limits: Sequence[float] | np.ndarray) -> float:
    """Rough height of the ground: a tenth of the points is below it. Without points: the range's floor."""
    heights = points[np.isfinite(points[:, 2]), 2]
    return round(float(np.percentile(heights, 10)), 1) if len(heights) else float(limits[2])


def ticks_of(low: float, high: float) -> np.ndarray:
    """Multiples of 1, 2 or 5 times a power of 10 from ``low`` to ``high``, about eight of them."""
    rough = (high - low) / TICKS
    power = 10.0 ** np.floor(np.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough)
    return np.arange(np.ceil(low / step), np.floor(high / step) + 1) * step


def cell_picture(cells: np.ndarray) -> np.ndarray:
    """Classes (H, W) of BEV cells as RGBA, pale; row 0 is the smallest y."""
    table = np.stack([rgb(color_of(number)) for number in range(NO_CLASS + 1)])
    alpha = np.full((*cells.shape, 1), 90, np.uint8)
    return np.concatenate([table[np.clip(cells, 0, NO_CLASS)], alpha], axis=2)


def legend(colors: PointColors | None, classes: Mapping[str, str], boxes: Mapping[str, str]) -> str:
    """HTML: what the colours of points and boxes mean."""
    rows = [_swatch(color, name) for name, color in boxes.items()]
    rows += [_swatch(color, name, "&#9679;") for name, color in classes.items()]
    if colors is not None and colors.by != "class" and len(colors.rgb):
        unit = " m" if colors.by == "height" else ""
        rows.append(
            f"<div>{colors.by} {colors.low:.2g}{unit} "
            f'<span style="display:inline-block;width:6em;height:0.8em;background:linear-gradient(to right,'
            f'{",".join(VIRIDIS)})"></span> {colors.high:.2g}{unit}</div>'
        )
    return f'<div style="padding:0 1em;font-size:0.85em">{"".join(rows)}</div>'


def _swatch(color: str, name: str, mark: str = "&#9632;") -> str:
    return f'<div><span style="color:{color}">{mark}</span> {escape(name)}</div>'


def classes_in(scene: Scene, style: Style) -> dict[str, str]:
    """Name and colour of each class of points and cells that occurs."""
    found = [array for array in (scene.point_classes, scene.cells) if array is not None and array.size]
    numbers = sorted(set(np.concatenate([np.unique(array) for array in found]).tolist()) if found else ())
    names = {number: name_of(style.point_class_names, number) for number in numbers}
    return {"no class" if number == NO_CLASS else names[number]: color_of(number) for number in numbers}
