"""Nodes of viser's scene tree: points, boxes, lanes and cells of the parts of a frame, ground and axes.

Each part has a root, ``/labels``, ``/before``, ``/after`` or ``/prediction``, at whose origin its LiDAR is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdet_freeze.visualization.bev import LANE_COLOR, ColorBy, Style
from pcdet_freeze.visualization.scene import Part
from pcdet_freeze.visualization.scene_3d import (
    PointColors,
    box_groups,
    box_lines,
    box_name,
    box_text,
    cell_picture,
    drawn_points,
    ground_of,
    line_segments,
    point_colors,
    quaternions,
    rgb,
    ticks_of,
)

if TYPE_CHECKING:
    import viser

MOST_NAMES = 100
"""boxes whose names are drawn, those with the highest scores"""
GAP = 0.1
"""space between parts beside each other, in widths of the range"""
GRID = rgb("#c0c0c0")
CUBE = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)], np.float32)
FACES = np.array(
    [[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1],
     [2, 3, 7], [2, 7, 6], [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]], np.uint32,
)  # fmt: skip
"""of CUBE, whose corner is 4 x + 2 y + z; counter-clockwise seen from outside"""


class Nodes:
    """The nodes of one scene tree; drawing a layer again replaces its nodes.

    Args:
        scene: of a viser server.
        style: limits, and names of classes.
        select: gets the text of a box that is clicked.
    """

    def __init__(self, scene: viser.SceneApi, style: Style, select: Callable[[str], None]) -> None:
        self._scene, self._style, self._select = scene, style, select
        self._layers: dict[str, dict[str, Any]] = {}
        self._roots: dict[str, Any] = {}
        self.low, self.high = (np.asarray(style.limits, np.float64)[part] for part in (slice(3), slice(3, 6)))

    def arrange(self, names: Iterable[str], beside: bool) -> None:
        """Show the parts ``names``, from left to right or over each other, and no others."""
        shown = list(names)
        for name in {*shown, *self._roots}:
            if name not in self._roots:
                self._roots[name] = self._scene.add_frame(f"/{name}", axes_length=3.0, axes_radius=0.06)
            self._roots[name].visible = name in shown
        width = float(self.high[1] - self.low[1]) * (1 + GAP)
        for number, name in enumerate(shown):
            self._roots[name].position = (0.0, -number * width if beside else 0.0, 0.0)

    def extent(self, parts: int) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest corner of ``parts`` parts beside each other."""
        low = self.low.copy()
        low[1] -= (parts - 1) * float(self.high[1] - self.low[1]) * (1 + GAP)
        return low, self.high

    def draw_cloud(self, part: Part, by: ColorBy, size: float, cloud: bool = True) -> tuple[PointColors, int]:
        """Draw points, cells, lanes and the ground below them.

        Returns:
            The colours of the points that are drawn, and their number.
        """
        scene, root = part.scene, f"/{part.name}"
        rows = drawn_points(scene.points) if cloud else np.zeros(0, np.int64)
        colors, ground = point_colors(scene, rows, by), ground_of(scene.points, self._style.limits)
        made = [*self._lanes(part, ground), *(self._ground(part, ground) if cloud else ())]
        if len(rows):
            xyz = np.ascontiguousarray(scene.points[rows, :3], np.float32)
            made.append(self._scene.add_point_cloud(
                f"{root}/points", xyz, colors.rgb, point_size=size, point_shape="circle",
                point_shading="flat", precision="float32"))  # fmt: skip
        if cloud and by == "class" and scene.cells is not None:
            middle = (self.low + self.high) / 2
            width, depth = (self.high - self.low)[:2].tolist()
            made.append(self._scene.add_image(
                f"{root}/cells", cell_picture(scene.cells), width, depth,
                position=(middle[0], middle[1], ground - 0.05)))  # fmt: skip
        self._replace(f"{root} cloud", made)
        return colors, len(rows)

    def resize_points(self, size: float) -> None:
        """Change the size of all points, in metres."""
        for layer in self._layers.values():
            for name, handle in layer.items():
                if name.endswith("/points"):
                    handle.point_size = size

    def draw_boxes(self, part: Part, by_state: bool, over: bool, named: bool) -> dict[str, str]:
        """Draw boxes with headings, and names if ``named``; returns the names of their colours."""
        groups = box_groups(part, self._style, by_state, over)
        made = [self._edges(part, groups, name, color) for name, color in dict(groups).items()]
        if groups:
            made.append(self._faces(part, np.stack([rgb(color) for _, color in groups])))
        if named:
            made += self._names(part)
        self._replace(f"/{part.name} boxes", made)
        return dict(groups)

    def _edges(self, part: Part, groups: list[tuple[str, str]], name: str, color: str) -> Any:
        """The lines of one group: viser brightens the colours of lines that have several."""
        lines = box_lines(part.scene.boxes[[group == (name, color) for group in groups]])
        return self._scene.add_line_segments(
            f"/{part.name}/edges/{name.replace('/', '_')}", lines.reshape(-1, 2, 3), rgb(color),
            thickness=2.5, thickness_units="screen")  # fmt: skip

    def _faces(self, part: Part, colors: np.ndarray) -> Any:
        """Pale faces, which can be clicked."""
        boxes = np.asarray(part.scene.boxes[:, :7], np.float32)
        faces = self._scene.add_batched_meshes_simple(
            f"/{part.name}/boxes", CUBE, FACES, quaternions(boxes[:, 6]), boxes[:, :3],
            batched_scales=boxes[:, 3:6], batched_colors=colors, opacity=0.12, side="double", lod="off",
            cast_shadow=False, receive_shadow=False)  # fmt: skip

        @faces.on_click
        def _(event: Any) -> None:
            if event.instance_index is not None:
                self._select(box_text(part, event.instance_index, self._style.class_names))

        return faces

    def _names(self, part: Part) -> list[Any]:
        """Class and score above each box."""
        scene = part.scene
        scores = np.zeros(len(scene.boxes)) if scene.scores is None else scene.scores
        made = []
        for place, number in enumerate(np.argsort(-scores, kind="stable")[:MOST_NAMES].tolist()):
            x, y, z, _, _, height = scene.boxes[number, :6].tolist()
            text = box_name(scene, number, self._style.class_names)
            made.append(self._label(f"/{part.name}/names/{place}", text, (x, y, z + height / 2 + 0.5)))
        return made

    def _label(self, name: str, text: str, place: tuple[float, float, float]) -> Any:
        return self._scene.add_label(name, text, position=place, font_screen_scale=0.8,
                                     anchor="center-center")  # fmt: skip

    def _lanes(self, part: Part, ground: float) -> list[Any]:
        name, color, lanes = f"/{part.name}/lanes", rgb(LANE_COLOR), part.scene.lanes
        if lanes and part.scene.lanes_are_points:
            xy = np.concatenate(lanes)[:, :2]
            points = np.column_stack([xy, np.full(len(xy), ground)])
            return [self._scene.add_point_cloud(name, points, color, point_size=0.25, point_shading="flat",
                                                precision="float32")]  # fmt: skip
        lines = [line_segments(line, ground + 0.05) for line in lanes if len(line) > 1]
        if not lines:
            return []
        return [self._scene.add_line_segments(name, np.concatenate(lines), color, thickness=4.0,
                                              thickness_units="screen")]  # fmt: skip

    def _ground(self, part: Part, ground: float) -> list[Any]:
        """A grid with metres at its edges, the names of the axes, and that of the part."""
        (x_low, y_low, _), (x_high, y_high, _) = self.low.tolist(), self.high.tolist()
        xs, ys = ticks_of(x_low, x_high).tolist(), ticks_of(y_low, y_high).tolist()
        across = [[[x, y_low, ground], [x, y_high, ground]] for x in xs]
        along = [[[x_low, y, ground], [x_high, y, ground]] for y in ys]
        grid = self._scene.add_line_segments(f"/{part.name}/grid", np.array([*across, *along]), GRID,
                                             thickness=1.0, thickness_units="screen")  # fmt: skip
        places = [(f"x {x:g} m", (x, y_low, ground)) for x in xs]
        places += [(f"y {y:g} m", (x_low, y, ground)) for y in ys]
        places += [("x", (3.3, 0.0, 0.0)), ("y", (0.0, 3.3, 0.0)), ("z", (0.0, 0.0, 3.3))]
        places.append((part.name, (x_high, (y_low + y_high) / 2, ground + 4.0)))
        labels = [self._label(f"/{part.name}/ticks/{number}", *each) for number, each in enumerate(places)]
        return [grid, *labels]

    def _replace(self, layer: str, made: list[Any]) -> None:
        """Remove what the layer had and has no longer; what has the same name replaced it already."""
        now = {handle.name: handle for handle in made}
        former = self._layers.get(layer, {})
        for name in former.keys() - now.keys():
            former[name].remove()
        self._layers[layer] = now
