"""A 3D view of frames in the browser, with viser: a local server, and a panel to step, colour and filter.

A frame is read and predicted when it is shown, in the thread that calls :meth:`Viewer.run`. All windows show
the same frame.
"""

from __future__ import annotations

import errno
import io
import os
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import lru_cache
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from pcdet_freeze.errors import ConfigError, PCDetFreezeError
from pcdet_freeze.utils.memory import free_cached_memory, is_memory_error
from pcdet_freeze.utils.terminal import printable
from pcdet_freeze.visualization.bev import COLORS, Style
from pcdet_freeze.visualization.demo import found_in, kept_in
from pcdet_freeze.visualization.scene import Part
from pcdet_freeze.visualization.scene_3d import PointColors, classes_in, legend
from pcdet_freeze.visualization.viewer_nodes import Nodes

if TYPE_CHECKING:
    import viser

LOOKED_AT = 4
"""frames whose predictions are kept in memory"""
PORTS = 20
"""ports that are tried, from the wanted one on"""
BY_CLASS, BY_STATE = "class", "kept / changed"


@dataclass
class Look:
    """What is shown of a frame."""

    summary: str = ""
    """its points, in words"""
    parts: list[Part] = field(default_factory=list)
    """with all boxes, whatever their scores"""


def require_viser() -> None:
    """Raise an error that names the extra if viser is not installed, or too old."""
    try:
        import viser
    except ImportError as error:
        raise PCDetFreezeError(
            "--view needs viser, which is not installed: pip install 'pcdet-freeze[viewer]'"
        ) from error
    if not hasattr(viser.GuiApi, "add_command"):  # the newest of what is called here
        raise PCDetFreezeError(
            f"--view needs viser 1.1 or later; got {getattr(viser, '__version__', 'an older one')}: "
            "pip install -U 'pcdet-freeze[viewer]'"
        )


def free_port(host: str, port: int) -> int:
    """The first port from ``port`` on that can be listened on; 0: any.

    Raises:
        ConfigError: there is none, or ``host`` is no address of this machine.
    """
    reason = "ports end at 65535"
    for candidate in range(port, min(port + PORTS, 65536) if port else 1):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            with socket.create_server((host, candidate), family=family) as found:
                return int(found.getsockname()[1])
        except OSError as error:
            reason = str(error)
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break  # no port of such a host can be used, and to look up its name takes time
    raise ConfigError(
        f"--host must be an address of this machine, with a free port from --port on; got {host} and {port} "
        f"({reason}). Use --host 127.0.0.1, or another --port"
    )


def has_display() -> bool:
    """Whether a browser window can open where this process runs."""
    if os.environ.get("SSH_CONNECTION"):
        return False
    return sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


class Viewer:
    """The view; :meth:`run` shows it until Ctrl-C, and :meth:`close` ends it.

    Args:
        count: number of frames.
        look: index of a frame -> what to show of it. A PCDetFreezeError, an error of a file, and that memory
            ran out, is shown in place of the frame.
        style: limits and names of classes; ``color_by`` is the colour at the start.
        score: boxes with a lower score are not drawn at the start.
        port: wanted; the next free one is used if another program has it.
    """

    def __init__(
        self, count: int, look: Callable[[int], Look], style: Style, score: float = 0.3,
        host: str = "127.0.0.1", port: int = 8080,
    ) -> None:  # fmt: skip
        require_viser()
        import viser

        self.count, self.style = count, style
        self._look = lru_cache(maxsize=LOOKED_AT)(look)
        self._changed, self._closed = threading.Event(), False
        self._shown: tuple[int, Look] = (-1, Look())
        self._drawn: tuple[Any, Any] = (None, None)
        self._parts: dict[str, Any] = {}
        self._colors: PointColors | None = None
        self._fewer = ""
        with _quiet():
            self.server = viser.ViserServer(host, free_port(host, port), label="pcdet_freeze", verbose=False)
        self.nodes = Nodes(self.server.scene, style, self._select)
        self._add_controls(self.server.gui, score)

    @property
    def address(self) -> str:
        """URL of the page."""
        host = self.server.get_host()
        shown = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
        return f"http://{shown}:{self.server.get_port()}"

    def run(self, open_browser: bool = False) -> None:
        """Draw the first frame, print the address, and follow the panel until :meth:`close` or Ctrl-C."""
        self.update()
        print(f"3D view of {self.count} frames: {self.address} (Ctrl-C ends it)", flush=True)
        if open_browser:
            webbrowser.open(self.address)
        while not self._closed:
            if self._changed.wait(1.0):
                self._changed.clear()
                self.update()

    def close(self) -> None:
        """Stop the server; :meth:`run` returns, if another thread runs it."""
        self._closed = True
        self._changed.set()
        with _quiet():
            self.server.stop()

    def step(self, by: int) -> None:
        """Go on by ``by`` frames, as far as there are any."""
        self.frame.value = min(max(self.frame.value + by, 1), self.count)
        self._changed.set()

    def update(self) -> None:
        """Draw what the panel asks for, where that changed."""
        index, first = self.frame.value - 1, self._shown[0] < 0
        if index != self._shown[0]:
            self._shown = index, self._looked_at(index)
        hidden = sorted(name for name, box in self._parts.items() if not box.value)
        cloud = (index, self.color.value, self.beside.value, hidden)
        boxes = (self.boxes.value, self.score.value, self.named.value)
        if self._drawn != (cloud, boxes):
            self._draw(self._shown[1], hidden, self._drawn[0] != cloud)
        self._drawn = (cloud, boxes)
        self.nodes.resize_points(self.size.value)
        if first:
            self._place_camera()

    def _add_controls(self, gui: viser.GuiApi, score: float) -> None:
        gui.configure_theme(show_logo=False, show_share_button=False)
        self.frame: Any = gui.add_slider("frame", 1, max(self.count, 1), 1, 1, disabled=self.count < 2)
        steps = gui.add_button_group(
            "go to", ("previous", "next"), disabled=self.count < 2, hint="keys P and N"
        )
        steps.on_click(lambda event: self.step(1 if event.target.value == "next" else -1))
        for label, hotkey, by in (("next frame", "N", 1), ("previous frame", "P", -1)):
            gui.add_command(label, hotkey=hotkey).on_trigger(lambda _, by=by: self.step(by))  # type: ignore[arg-type,misc]
        self.status = gui.add_html("")
        self.color = gui.add_dropdown("points by", COLORS, initial_value=self.style.color_by)
        self.size = gui.add_slider("point size [m]", 0.02, 0.4, 0.01, 0.08)
        self.boxes = gui.add_dropdown("boxes by", (BY_STATE, BY_CLASS), visible=False)
        self.score = gui.add_slider("lowest score", 0.0, 1.0, 0.01, min(max(score, 0.0), 1.0))
        self.named = gui.add_checkbox("names and scores", True)
        self.beside = gui.add_checkbox("beside each other", True, visible=False)
        self.selected = gui.add_html("", order=1e12)
        self.legend = gui.add_html("", order=1e12 + 1)
        for control in (self.frame, self.color, self.size, self.boxes, self.score, self.named, self.beside):
            control.on_update(lambda _: self._changed.set())

    def _looked_at(self, index: int) -> Look:
        self.status.content = _html(f"frame {index + 1} of {self.count}: reading and predicting ...")
        try:
            return self._look(index)
        except (PCDetFreezeError, OSError, MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_memory_error(error):
                raise
            free_cached_memory()
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
            return Look(f"{type(error).__name__}: {error}")

    def _draw(self, look: Look, hidden: Sequence[str], with_cloud: bool) -> None:
        """Draw the boxes of a frame; ``with_cloud``: points, lanes, cells and ground, too."""
        self._offer(look.parts)
        parts = [part.above(self.score.value) for part in look.parts if part.name not in hidden]
        beside = self.beside.value and len(look.parts) > 1
        over = not beside and len(parts) > 1
        names: dict[str, str] = {}
        with self.server.atomic():
            self.nodes.arrange([part.name for part in parts], beside)
            if with_cloud:
                self.selected.content = ""
                self._draw_clouds(parts, over)
            for part in parts:
                by_state = self.boxes.value == BY_STATE
                names |= self.nodes.draw_boxes(part, by_state, over, self.named.value)
        self._say(look, parts, names)

    def _draw_clouds(self, parts: list[Part], over: bool) -> None:
        """Parts that lie over each other share the points of the last one."""
        self._colors, self._fewer = None, ""
        for number, part in enumerate(parts):
            own = not over or number == len(parts) - 1
            colors, count = self.nodes.draw_cloud(part, self.color.value, self.size.value, own)
            if own:
                self._colors, total = colors, len(part.scene.points)
                if count < total:
                    self._fewer = f"{count} of {total} points are drawn; the model gets all"

    def _offer(self, parts: list[Part]) -> None:
        """Show the controls that the parts of this frame need."""
        self.boxes.visible = any(part.kept is not None for part in parts)
        self.beside.visible = len(parts) > 1
        for part in parts:
            if part.name not in self._parts and len(parts) > 1:
                box = self._parts[part.name] = self.server.gui.add_checkbox(f"show {part.name}", True)
                box.on_update(lambda _: self._changed.set())

    def _say(self, look: Look, parts: list[Part], boxes: dict[str, str]) -> None:
        words = [f"frame {self.frame.value} of {self.count}", look.summary, self._fewer]
        for part in parts:
            labelled = part.name == "labels" and len(part.scene.points)
            found = (
                f"{len(part.scene.boxes)} boxes" if labelled else found_in(part.scene, self.style.class_names)
            )
            words.append(f"{part.name}: {found}")
        words.append(kept_in([part.above(self.score.value) for part in look.parts]))
        self.status.content = _html(*words)
        by_class = self._colors is not None and self._colors.by == "class"
        classes: dict[str, str] = {}
        for part in parts if by_class else ():
            classes |= classes_in(part.scene, self.style)
        self.legend.content = legend(self._colors, classes, boxes)

    def _select(self, text: str) -> None:
        self.selected.content = _html(text)

    def _place_camera(self) -> None:
        """Behind and above the parts, looking ahead; they lie left of the panel."""
        low, high = self.nodes.extent(max(len(self._parts), 1))
        size = high - low
        distance = float(max(0.6 * size[1], 0.85 * size[0]))
        middle = (low + high) / 2 - np.array([0, 0.13 * size[1], 0])
        camera = self.server.initial_camera
        camera.far = max(1000.0, 10 * distance)
        camera.look_at = middle
        camera.position = middle + distance * np.array([-0.75, 0, 0.65])


def _html(*lines: str) -> str:
    shown = "".join(f"<div>{escape(printable(line))}</div>" for line in lines if line)
    return f'<div style="padding:0 1em;font-size:0.85em;overflow-wrap:anywhere">{shown}</div>'


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines that viser prints."""
    with redirect_stdout(io.StringIO()):
        yield
