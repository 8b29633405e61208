"""Draw a scene from above with matplotlib: x to the right, y up, one unit a metre.

Figures are made without pyplot: no display, no global state, usable in threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.ops.boxes import boxes_to_corners_3d
from pcdet_freeze.utils.output_files import writing
from pcdet_freeze.visualization.scene import NO_CLASS, Scene

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ColorBy = Literal["height", "intensity", "class"]
COLORS: tuple[ColorBy, ...] = ("height", "intensity", "class")
CLASS_COLORS = (
    "#5b9bd5", "#f4a259", "#7fc97f", "#b0685a", "#a48ad4",
    "#8c9c3c", "#e78ac3", "#c9b400", "#2fb7c4", "#7f7f7f",
    "#1f3b73", "#3f7f5f",
)  # fmt: skip
"""of classes 0, 1, ... of points and cells, repeated"""
BOX_COLORS = ("#b2001d", "#0033a0", "#006b2d", "#8a4b00", "#5c0a8c", "#00606b")
"""of classes 0, 1, ... of boxes, repeated"""
NO_CLASS_COLOR, LANE_COLOR = "#c8c8c8", "#e6007e"
KEPT_COLOR, CHANGED_COLOR = "#2ca02c", "#d62728"
FRONT = (0, 1)
"""corners of a box's front edge, of the four of its lower face"""


def require_matplotlib() -> None:
    """Raise an error that names the extra if matplotlib is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise PCDetFreezeError(
            "Pictures need matplotlib, which is not installed: pip install 'pcdet-freeze[vis]'"
        ) from error


@dataclass
class Style:
    """How scenes are drawn."""

    limits: Sequence[float] | np.ndarray
    """POINT_CLOUD_RANGE: [x_min, y_min, z_min, x_max, y_max, z_max] in metres"""
    class_names: Sequence[str] = ()
    """of boxes: class 1, 2, ..."""
    point_class_names: Sequence[str] = ()
    """of points and cells: class 0, 1, ..."""
    color_by: ColorBy = "height"
    width: float = 9.0
    """inches of one picture"""
    axes: bool = True
    """False: no ticks and labels; drawn in a third of the time"""


def new_figure(style: Style, pictures: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure with ``pictures`` axes beside each other, or below each other where the range is wide."""
    require_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    low, high = np.asarray(style.limits[:2], float), np.asarray(style.limits[3:5], float)
    shape = (high - low)[1] / (high - low)[0]
    rows, columns = (1, pictures) if shape >= 0.6 else (pictures, 1)
    size = (style.width * columns, (style.width * shape + 0.8) * rows)
    figure = Figure(figsize=size, dpi=110, layout="constrained" if style.axes else None)
    FigureCanvasAgg(figure)
    axes = [figure.add_subplot(rows, columns, number + 1) for number in range(pictures)]
    for ax in axes:
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), aspect="equal", xlabel="x [m]", ylabel="y [m]")
        if not style.axes:
            ax.set_axis_off()
    if not style.axes:
        figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.94, wspace=0.02, hspace=0.12)
    return figure, axes


def draw(ax: Axes, scene: Scene, style: Style, title: str = "", kept: np.ndarray | None = None) -> None:
    """Draw cells, points, lanes, then boxes.

    Args:
        kept: (K,) bool; boxes in green where True and red where False, instead of by class.
    """
    names: dict[str, str] = {}
    if scene.cells is not None and style.color_by == "class":
        draw_cells(ax, scene.cells, style)
    draw_points(ax, scene, style, names)
    draw_lanes(ax, scene, names)
    draw_boxes(ax, scene, style, names, kept)
    if title:
        ax.set_title(title, fontsize=10)
    if names:
        from matplotlib.lines import Line2D

        marks = [Line2D([], [], color=color, lw=3, label=name) for name, color in names.items()]
        ax.legend(handles=marks, loc="upper right", fontsize=7, framealpha=0.8)


def draw_points(ax: Axes, scene: Scene, style: Style, names: dict[str, str]) -> None:
    """Draw each point as a dot, the highest last; add the classes that occur to ``names``."""
    if not len(scene.points):
        ax.text(0.5, 0.5, "no points in range", transform=ax.transAxes, ha="center", color="0.5")
        return
    order = np.argsort(scene.points[:, 2], kind="stable")
    x, y = scene.points[order, 0], scene.points[order, 1]
    how: dict[str, Any] = {"s": 0.6, "linewidths": 0, "rasterized": True}
    if style.color_by == "class" and scene.point_classes is not None:
        classes = scene.point_classes[order]
        ax.scatter(x, y, c=[color_of(number) for number in classes.tolist()], **how)
        for number in np.unique(classes[classes != NO_CLASS]).tolist():
            names[name_of(style.point_class_names, number)] = color_of(number)
    elif style.color_by == "intensity" and scene.intensity is not None:
        ax.scatter(x, y, c=scene.intensity[order], cmap="viridis", **how)
    else:
        heights = scene.points[order, 2]
        low, high = np.percentile(heights, [2, 98])
        ax.scatter(x, y, c=heights, cmap="viridis", vmin=low, vmax=max(high, low + 0.1), **how)


def draw_cells(ax: Axes, cells: np.ndarray, style: Style) -> None:
    """Draw the classes of BEV cells (H, W), rows y, columns x, pale below the points."""
    from matplotlib.colors import to_rgba

    table = np.array([to_rgba(color_of(number), 0.25) for number in range(int(cells.max()) + 1)])
    low, high = style.limits[:2], style.limits[3:5]
    extent = (float(low[0]), float(high[0]), float(low[1]), float(high[1]))
    ax.imshow(table[cells], origin="lower", extent=extent, interpolation="nearest", zorder=0)


def draw_lanes(ax: Axes, scene: Scene, names: dict[str, str]) -> None:
    """Draw each line (n, 2)."""
    how: dict[str, Any] = {"ls": "", "marker": ".", "ms": 1.5} if scene.lanes_are_points else {"lw": 1.6}
    for line in scene.lanes:
        ax.plot(line[:, 0], line[:, 1], color=LANE_COLOR, **how)
    if scene.lanes:
        names["lane"] = LANE_COLOR


def draw_boxes(
    ax: Axes, scene: Scene, style: Style, names: dict[str, str], kept: np.ndarray | None = None
) -> None:
    """Draw the outline of each box, a line from its centre through its front, and its score."""
    if not len(scene.boxes):
        return
    corners = boxes_to_corners_3d(np.asarray(scene.boxes[:, :7], np.float64))[:, :4, :2]
    for number, (outline, label) in enumerate(zip(corners, scene.labels.tolist(), strict=True)):
        if kept is None:
            color, name = color_of(label - 1, BOX_COLORS), name_of(style.class_names, label - 1)
        else:
            color, name = (KEPT_COLOR, "kept") if kept[number] else (CHANGED_COLOR, "changed")
        names[name] = color
        closed, front = np.vstack([outline, outline[:1]]), outline[list(FRONT)].mean(axis=0)
        heading = np.vstack([outline.mean(axis=0), front + 0.3 * (front - outline.mean(axis=0))])
        ax.plot(*closed.T, color=color, lw=1.3)
        ax.plot(*heading.T, color=color, lw=1.3)
        if scene.scores is not None:
            ax.annotate(f"{scene.scores[number]:.2f}", outline.max(axis=0), fontsize=6, color=color,
                        annotation_clip=True)  # fmt: skip


def color_of(number: int, colors: Sequence[str] = CLASS_COLORS) -> str:
    """The colour of class ``number``, 0-based."""
    return NO_CLASS_COLOR if number == NO_CLASS else colors[number % len(colors)]


def name_of(names: Sequence[str], number: int) -> str:
    """The name of class ``number``, 0-based."""
    return names[number] if 0 <= number < len(names) else f"class {number}"


def picture_name(frame: str) -> str:
    """File name of the picture of a frame, whose name may have folders: ``kitti_000008.png``."""
    return f"{frame.replace('/', '_')}.png"


def save(figure: Figure, path: Path) -> Path:
    """Write a PNG; OutputError names the folder where it cannot be written."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="png")
    return path
