"""Point clouds of files that belong to no data set, recognised by their content.

Kinds of files: .bin, .npy, .pcd, .las, .laz. :class:`PointFiles` gives them to a model as a data set would.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.file_formats.files import read_bin, read_npy
from pcdet_freeze.datasets.file_formats.las_files import read_las
from pcdet_freeze.datasets.loader import label_forms_of
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import Config, Sample
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.errors import DataError, PCDetFreezeError

SUFFIXES = (".bin", ".npy", ".pcd", ".las", ".laz")
_HEAD = 64
_PCD = (b"# .PCD v", b"VERSION ")
_LAS = b"LASF"
INTENSITY_NAMES = ("intensity", "i", "reflectance", "reflectivity")
"""names of the intensity in files whose columns have names"""


def find_point_files(path: Path, ext: str | None = None) -> list[Path]:
    """The point files of ``path``: itself, or those directly in the folder, by name.

    Args:
        ext: suffix of the files, such as ``.bin``; None: each of SUFFIXES.

    Raises:
        DataError: there is none.
    """
    if path.is_file():
        return [path]
    suffixes = SUFFIXES if ext is None else (ext if ext.startswith(".") else f".{ext}",)
    found = sorted(file for file in path.glob("*") if file.suffix in suffixes and file.is_file())
    if not found:
        there = "it does not exist" if not path.is_dir() else f"it has no {', '.join(suffixes)} file"
        raise DataError(f"--data_path must be a point file or a folder of such files; {path}: {there}")
    return found


@dataclass(frozen=True)
class Columns:
    """Which columns of a file are the columns of points."""

    wanted: tuple[str, ...]
    """of the points; they begin with x, y, z"""
    stored: tuple[str, ...] = ()
    """of files whose columns have no names, in their order; none: those that are wanted"""
    names: Mapping[str, str] = field(default_factory=dict)
    """wanted column -> its name in files whose columns have names, where that is another one"""
    strict: bool = False
    """a column that a file lacks is an error; otherwise it is zero, x, y and z apart"""

    @property
    def of_rows(self) -> tuple[str, ...]:
        """Columns of a file that has no names for them."""
        return self.stored or self.wanted

    def name_in(self, column: str, there: Sequence[str]) -> str | None:
        """The name of ``column`` among the names ``there``; None: it is not there."""
        known = INTENSITY_NAMES if column == "intensity" else (column,)
        names = (self.names[column],) if column in self.names else known
        return next((name for name in names if name in there), None)


def read_points(path: Path, columns: Sequence[str] | Columns) -> np.ndarray:
    """Points (N, C) float32 of a file, whatever its suffix; rows with NaN or inf are left out.

    Raw float32 rows must have exactly these columns. Arrays of ``np.save`` have them first; PCD and LAS files
    and structured arrays have them by name. A column that such a file lacks, x, y and z apart, is zero.

    Raises:
        DataError: the file is of another kind, or is damaged.
    """
    points = read_rows(path, columns if isinstance(columns, Columns) else Columns(tuple(columns)))
    return points[np.isfinite(points).all(axis=1)]  # PCD files have NaN where a beam has no return


def read_rows(path: Path, columns: Columns) -> np.ndarray:
    """All rows (N, len(columns.wanted)) float32 of a file in their order, with NaN where it has NaN.

    Raises:
        DataError: the file is of another kind, is damaged, or lacks a column.
    """
    with np.errstate(over="ignore"):  # a float64 beyond float32 is inf
        return _rows(path, columns)


def _rows(path: Path, columns: Columns) -> np.ndarray:
    head = _head_of(path)
    if head.startswith(b"\x93NUMPY"):
        return _of_array(read_npy(path), columns, path)
    if head.startswith(_PCD):
        return _of_pcd(path, columns)
    if head.startswith(_LAS):
        return _of_las(path, columns)
    return _picked(read_bin(path, len(columns.of_rows), allow_empty=True), columns, path)


def _head_of(path: Path) -> bytes:
    def read() -> bytes:
        with path.open("rb") as file:
            return file.read(_HEAD)

    try:
        return timed(path, read)
    except OSError as error:
        raise DataError(f"{path}: the point file cannot be read ({error.strerror})") from error


def _of_array(array: np.ndarray, columns: Columns, path: Path) -> np.ndarray:
    if array.dtype.names is not None and array.ndim == 1:
        return _by_name(array.dtype.names, lambda name: array[name], len(array), columns, path)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: an array of points has the shape (N, 3 or more); got {array.dtype} of shape "
            f"{array.shape}"
        )
    return _picked(array, columns, path)


def _picked(rows: np.ndarray, columns: Columns, path: Path) -> np.ndarray:
    """The wanted columns (N, C) float32 of rows without names; the last ones may be missing."""
    points = np.zeros((len(rows), len(columns.wanted)), np.float32)
    for number, column in enumerate(columns.wanted):
        place = columns.of_rows.index(column) if column in columns.of_rows else rows.shape[1]
        if place < rows.shape[1]:
            points[:, number] = rows[:, place]
        elif columns.strict:
            raise DataError(
                f"{path}: a file needs the column {column}; it has {rows.shape[1]} columns, read as "
                f"{', '.join(columns.of_rows)}. {_CURE}"
            )
    return points


_CURE = (
    "Name its columns in DATA_CONFIG.FILE_COLUMNS or COLUMN_NAMES, or remove the column from "
    "POINT_FEATURE_ENCODING.src_feature_list"
)


def _of_pcd(path: Path, columns: Columns) -> np.ndarray:
    try:
        import pypcd4
    except ImportError as error:
        raise DataError(
            f"{path}: PCD files need pypcd4, which is not installed: pip install 'pcdet-freeze[vis]'"
        ) from error
    try:
        reader: Any = pypcd4
        cloud = timed(path, lambda: reader.PointCloud.from_path(path))
        values = {name: np.asarray(cloud.numpy((name,))).ravel() for name in cloud.fields}
    except PCDetFreezeError:
        raise
    except Exception as error:  # a damaged header raises anything
        raise DataError(f"{path}: not a PCD file that can be read ({error})") from error
    return _by_name(list(values), values.__getitem__, int(cloud.points), columns, path)


def _of_las(path: Path, columns: Columns) -> np.ndarray:
    values = timed(path, lambda: read_las(path))
    return _by_name(list(values), values.__getitem__, len(values["x"]), columns, path)


def _by_name(
    there: Sequence[str], values: Callable[[str], Any], count: int, columns: Columns, path: Path
) -> np.ndarray:
    points = np.zeros((count, len(columns.wanted)), np.float32)
    for number, column in enumerate(columns.wanted):
        name = columns.name_in(column, there)
        if name is not None:
            points[:, number] = _column(values(name), count, name, path)
        elif column in ("x", "y", "z") and column not in columns.names:
            raise DataError(f"{path}: points need columns x, y, z; got {', '.join(there)}")
        elif columns.strict or column in ("x", "y", "z"):
            wanted = columns.names.get(column, column)
            raise DataError(f"{path}: a file needs the column {wanted}; it has {', '.join(there)}. {_CURE}")
    return points


def _column(values: Any, count: int, name: str, path: Path) -> np.ndarray:
    found = np.asarray(values)
    if found.shape != (count,) or found.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: column {name} must hold a number for each of the {count} points; got {found.dtype} of "
            f"shape {found.shape}. Is the file cut off?"
        )
    return found


class PointFiles(DatasetTemplate):
    """Frames without labels, one of each file, for a model that was trained on another data set.

    Args:
        dataset_cfg: DATA_CONFIG of the training; range, columns and processing are those of its test mode.
        files: point files, see :func:`read_points`.
        intensity_scale: value of the intensity that the training knows as 1; 1: as DATA_CONFIG says.
    """

    labels = ()

    def __init__(
        self,
        dataset_cfg: Config,
        class_names: Sequence[str],
        files: Sequence[Path],
        intensity_scale: float = 1.0,
    ) -> None:
        own = (dataset_cfg.get("INTENSITY") or {}).get("SCALE", 1.0)
        self.files, self.intensity_scale = list(files), own if intensity_scale == 1.0 else intensity_scale
        super().__init__(dataset_cfg, class_names, training=False)
        self.columns = list(self.point_feature_encoder.src_feature_list)
        stored, names = dataset_cfg.get("FILE_COLUMNS"), dataset_cfg.get("COLUMN_NAMES")
        self._of_files = Columns(tuple(self.columns), tuple(stored or ()), names or {})
        self.semantic_class_names, self.lane_map_shape = label_forms_of(dataset_cfg)

    def __len__(self) -> int:
        return len(self.files)

    def frame_name(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def raw_points(self, index: int) -> np.ndarray:
        """All points of file ``index``, (N, len(src_feature_list))."""
        points = read_points(self.files[index], self._of_files)
        if self.intensity_scale != 1.0 and "intensity" in self.columns:
            points[:, self.columns.index("intensity")] /= self.intensity_scale
        return points

    def load_sample(self, index: int) -> Sample:
        """The points of file ``index``."""
        return {"points": self.raw_points(index), "frame_id": self.files[index].stem}
