"""Point clouds of files that belong to no data set, recognised by their content: .bin, .npy, .pcd.

:class:`PointFiles` gives them to a model as a data set would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.files import read_bin, read_npy
from pcdet_freeze.datasets.loader import label_forms_of
from pcdet_freeze.datasets.registry import Config, Sample
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.errors import DataError

SUFFIXES = (".bin", ".npy", ".pcd")
_HEAD = 64
_PCD = (b"# .PCD v", b"VERSION ")
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
        there = "the folder does not exist" if not path.is_dir() else f"it has no {', '.join(suffixes)} file"
        raise DataError(f"--data_path must be a point file or a folder of such files; {path}: {there}")
    return found


def read_points(path: Path, columns: Sequence[str]) -> np.ndarray:
    """Points (N, len(columns)) float32 of a file, whatever its suffix.

    Raw float32 rows must have exactly these columns. Arrays of ``np.save`` have them first; PCD files and
    structured arrays have them by name. A column that such a file lacks, x, y and z apart, is zero.

    Raises:
        DataError: the file is of another kind, or is damaged.
    """
    head = _head_of(path)
    if head.startswith(b"\x93NUMPY"):
        points = _of_array(read_npy(path), columns, path)
    elif head.startswith(_PCD):
        points = _of_pcd(path, columns)
    else:
        points = read_bin(path, len(columns), allow_empty=True)
    return points[np.isfinite(points).all(axis=1)]  # PCD files have NaN where a beam has no return


def _head_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise DataError(f"{path}: the point file cannot be read ({error.strerror})") from error


def _of_array(array: np.ndarray, columns: Sequence[str], path: Path) -> np.ndarray:
    if array.dtype.names is not None and array.ndim == 1:
        return _by_name(array.dtype.names, lambda name: array[name], len(array), columns, path)
    if array.ndim != 2 or array.shape[1] < 3 or array.dtype.kind not in "fiu":
        raise DataError(
            f"{path}: an array of points has the shape (N, 3 or more); got {array.dtype} of shape "
            f"{array.shape}"
        )
    points = np.zeros((len(array), len(columns)), np.float32)
    given = min(len(columns), array.shape[1])
    points[:, :given] = array[:, :given]
    return points


def _of_pcd(path: Path, columns: Sequence[str]) -> np.ndarray:
    try:
        import pypcd4
    except ImportError as error:
        raise DataError(
            f"{path}: PCD files need pypcd4, which is not installed: pip install 'pcdet-freeze[vis]'"
        ) from error
    try:
        reader: Any = pypcd4
        cloud = reader.PointCloud.from_path(path)
        values = {name: np.asarray(cloud.numpy((name,))).ravel() for name in cloud.fields}
    except Exception as error:  # a damaged header raises anything
        raise DataError(f"{path}: not a PCD file that can be read ({error})") from error
    return _by_name(list(values), values.__getitem__, int(cloud.points), columns, path)


def _by_name(
    there: Sequence[str],
    values: Callable[[str], Any],
    count: int,
    columns: Sequence[str],
    path: Path,
) -> np.ndarray:
    points = np.zeros((count, len(columns)), np.float32)
    for number, column in enumerate(columns):
        names = INTENSITY_NAMES if column == "intensity" else (column,)
        name = next((name for name in names if name in there), None)
        if name is not None:
            points[:, number] = _column(values(name), count, name, path)
        elif column in ("x", "y", "z"):
            raise DataError(f"{path}: points need columns x, y, z; got {', '.join(there)}")
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
        intensity_scale: value of the intensity that the training knows as 1.
    """

    labels = ()

    def __init__(
        self,
        dataset_cfg: Config,
        class_names: Sequence[str],
        files: Sequence[Path],
        intensity_scale: float = 1.0,
    ) -> None:
        self.files, self.intensity_scale = list(files), intensity_scale
        super().__init__(dataset_cfg, class_names, training=False)
        self.columns = list(self.point_feature_encoder.src_feature_list)
        self.semantic_class_names, self.lane_map_shape = label_forms_of(dataset_cfg)

    def __len__(self) -> int:
        return len(self.files)

    def frame_name(self, index: int) -> str:
        """The file."""
        return str(self.files[index])

    def raw_points(self, index: int) -> np.ndarray:
        """All points of file ``index``, (N, len(src_feature_list))."""
        points = read_points(self.files[index], self.columns)
        if self.intensity_scale != 1.0 and "intensity" in self.columns:
            points[:, self.columns.index("intensity")] /= self.intensity_scale
        return points

    def load_sample(self, index: int) -> Sample:
        """The points of file ``index``."""
        return {"points": self.raw_points(index), "frame_id": self.files[index].stem}
