"""Cache of rendered frames: none, in the memory of the process, or in a folder."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict, fields
from logging import Logger
from pathlib import Path

import numba
import numpy as np

from pcdet_freeze.datasets.synthetic.render import Frame
from pcdet_freeze.datasets.synthetic.settings import IN_MEMORY, Settings

BYTES_PER_POINT = 19  # 4 float32, label, owner
UNREADABLE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    SyntaxError,
    MemoryError,
    zipfile.BadZipFile,
    zlib.error,
)


class FrameCache:
    """Frames by index. A frame that is not cached is computed by ``render(index)``.

    In memory a frame takes about 19 bytes per point. Each loader worker has its own cache, which is discarded
    with the worker, so use it without workers. A folder is shared by all processes and by later runs.
    """

    def __init__(self, settings: Settings, render: Callable[[int], Frame], logger: Logger) -> None:
        self._render, self._logger = render, logger
        self._memory: dict[int, Frame] | None = {} if settings.cache == IN_MEMORY else None
        self._folder = settings.cache_folder
        if self._folder is not None:
            self._folder = self._folder / digest(settings)
            self._folder.mkdir(parents=True, exist_ok=True)
        if settings.cache is not None:
            rays = len(settings.sensor.elevations) * 360 / settings.sensor.azimuth_step
            most = settings.num_scenes * rays * BYTES_PER_POINT / 2**20
            where = self._folder or "the memory of each process"
            scenes = settings.num_scenes
            logger.info("caching synthetic scenes in %s: %d scenes, at most %.0f MiB", where, scenes, most)

    def get(self, index: int) -> Frame:
        """Frame ``index``; its arrays are read-only."""
        if self._memory is None:
            return self._stored(index)
        if index not in self._memory:
            self._memory[index] = self._stored(index)
        return self._memory[index]

    def _stored(self, index: int) -> Frame:
        if self._folder is None:
            return self._render(index)
        path = self._folder / f"{index:06d}.npz"
        try:
            return unpack(path.read_bytes())
        except FileNotFoundError:
            pass
        except UNREADABLE as error:
            self._logger.warning("cannot read the cached scene %s (%s): rendering it again", path, error)
        frame = self._render(index)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_bytes(pack(frame))
        os.replace(part, path)
        return frame


def digest(settings: Settings) -> str:
    """Digest of everything that a frame depends on: settings, the source of this package, numba's version."""
    seen = {key: value for key, value in asdict(settings).items() if key not in ("num_scenes", "cache")}
    text = repr(sorted(seen.items())) + numba.__version__
    parts = [path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py"))]
    return hashlib.sha256(b"\0".join([text.encode(), *parts])).hexdigest()[:20]


def pack(frame: Frame) -> bytes:
    """Serialize a frame to the bytes of an npz file, which contains checksums."""
    arrays = {one.name: getattr(frame, one.name) for one in fields(frame) if one.name != "polylines"}
    lines = frame.polylines
    arrays["lines"] = np.concatenate([*lines, np.zeros((0, 3))])
    arrays["line_lengths"] = np.array([len(line) for line in lines], np.int64)
    out = io.BytesIO()
    np.savez(out, **arrays)
    return out.getvalue()


def unpack(data: bytes) -> Frame:
    """Deserialize a frame from the bytes of :func:`pack`; raises one of UNREADABLE for corrupt bytes."""
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    lines, lengths = arrays.pop("lines"), arrays.pop("line_lengths")
    arrays["polylines"] = np.split(lines, np.cumsum(lengths)[:-1]) if len(lengths) else []
    arrays["attempt"] = int(arrays["attempt"])
    return Frame(**arrays)
