"""Labels of one's own beside the frames of a data set: ``semantic/<frame>.label`` and ``lanes/<frame>.npy``.

docs/labels.md describes the folders and how to write such files. A frame without a file is labelled in
part; a file that does not fit its frame is a DataError that names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.file_formats.files import read_npy
from pcdet_freeze.datasets.frames import IGNORE
from pcdet_freeze.datasets.labels.label_settings import LaneSettings, SemanticSettings
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import Sample
from pcdet_freeze.errors import DataError
from pcdet_freeze.utils.untrusted_files.inside import inside

SEMANTIC_SUFFIXES = (".label", ".npy")


@dataclass(frozen=True)
class LabelFiles:
    """The files under ``folder``; what is None in the settings is not read."""

    folder: Path
    semantic: SemanticSettings | None = None
    lanes: LaneSettings | None = None

    @property
    def keys(self) -> tuple[str, ...]:
        """The label keys that are read."""
        wanted = (("point_labels", self.semantic), ("lane_map", self.lanes))
        return tuple(key for key, settings in wanted if settings is not None)

    def path(self, key: str, frame: str) -> Path | None:
        """The file with label ``key`` of a frame, None where it has none."""
        if key == "lane_map" and self.lanes is not None:
            paths = [inside(self.folder / self.lanes.folder, f"{frame}.npy", "the frame's file")]
        elif key == "point_labels" and self.semantic is not None:
            folder = self.folder / self.semantic.folder
            paths = [inside(folder, f"{frame}{end}", "the frame's file") for end in SEMANTIC_SUFFIXES]
        else:
            paths = []
        return next((path for path in paths if timed(path, path.is_file)), None)

    def count(self, frames: Iterable[str]) -> dict[str, int]:
        """How many of ``frames`` have each label that is read."""
        names = list(frames)
        return {key: sum(self._has(key, name) for name in names) for key in self.keys}

    def _has(self, key: str, frame: str) -> bool:
        try:
            return self.path(key, frame) is not None
        except DataError:  # a frame id that is a path out of the folder: a bad frame, named when it is read
            return False

    def add(self, sample: Sample, frame: str) -> None:
        """Put the frame's ``point_labels`` (N,) int64 and ``lane_map`` (H, W) uint8 into ``sample``."""
        path = self.path("point_labels", frame)
        if path is not None and self.semantic is not None:
            sample["point_labels"] = read_semantic(path, len(sample["points"]), self.semantic)
        path = self.path("lane_map", frame)
        if path is not None and self.lanes is not None:
            sample["lane_map"] = read_lane_map(path, self.lanes.shape)


def read_semantic(path: Path, points: int, settings: SemanticSettings) -> np.ndarray:
    """Classes (points,) int64, 255 = ignore, of a file in the order of the frame's point file.

    ``.label``: one little-endian uint32 a point, of which the lower 16 bits count (as SemanticKITTI stores
    them, with an instance above); ``.npy``: whole numbers (N,).
    """
    raw = _read_label(path) if path.suffix == ".label" else _read_npy(path)
    if raw.shape != (points,):
        raise DataError(
            f"{path}: a label file holds one label for each of the {points} points of its frame; got "
            f"{'x'.join(map(str, raw.shape))}. Is it that of another frame, or of a filtered cloud?"
        )
    return to_classes(raw, settings, path)


def to_classes(raw: np.ndarray, settings: SemanticSettings, path: Path) -> np.ndarray:
    """Classes (N,) int64, 255 = ignore, of the values (N,) in a file; DataError for a value without one."""
    known = settings.values
    classes = range(len(settings.classes))
    table = {number: number for number in (*classes, IGNORE)} if known is None else known
    found, where = np.unique(raw, return_inverse=True)
    wrong = [int(value) for value in found if int(value) not in table]
    if wrong:
        rule = (
            f"0..{len(classes) - 1} ({len(classes)} classes) or {IGNORE} (ignore)"
            if known is None
            else "values that DATA_CONFIG.SEMANTIC.LABEL_MAP lists"
        )
        raise DataError(
            f"{path}: labels must be {rule}; got {', '.join(map(str, wrong[:8]))}. Add them to "
            "DATA_CONFIG.SEMANTIC.LABEL_MAP, under their class or under ignore"
        )
    mapped = np.array([table[int(value)] for value in found], np.int64)
    return mapped[where.reshape(-1)] if len(found) else np.zeros(0, np.int64)


def read_lane_map(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) uint8 from whole numbers 0..255; rows are y upwards, columns x, 255 is no lane."""
    lanes = _read_npy(path)
    if lanes.shape != shape:
        raise DataError(
            f"{path}: a lane map must have {shape[0]} rows (y) and {shape[1]} columns (x), "
            f"POINT_CLOUD_RANGE by LANE.CELL_SIZE; got {'x'.join(map(str, lanes.shape))}"
        )
    if lanes.size and not 0 <= int(lanes.min()) <= int(lanes.max()) <= IGNORE:
        raise DataError(
            f"{path}: a lane map holds line numbers 0..254 and 255 for no lane; got "
            f"{int(lanes.min())}..{int(lanes.max())}"
        )
    return lanes.astype(np.uint8)


def _read_label(path: Path) -> np.ndarray:
    try:
        raw = timed(path, path.read_bytes)
    except OSError as error:
        raise DataError(f"{path}: the label file cannot be read ({error.strerror})") from error
    if len(raw) % 4:
        raise DataError(f"{path}: a .label file holds 4 bytes a point; got {len(raw)} bytes. Fetch it again")
    return np.frombuffer(raw, "<u4").astype(np.int64) & 0xFFFF


def _read_npy(path: Path) -> np.ndarray:
    values = read_npy(path)
    if values.dtype.kind not in "iu":
        raise DataError(f"{path}: labels must be whole numbers; got an array of {values.dtype}")
    return values
