"""Annotation dicts, one per frame -> validated columns over all frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcdet_freeze.errors import DataError

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NO_ALPHA = -10.0
DONT_CARE = "dontcare"


@dataclass(frozen=True)
class Objects:
    """K objects of all frames, in frame order; camera frame (x right, y down, z forward), metres, radians."""

    first: Ints
    """(frames + 1,) frame i holds the objects first[i]:first[i + 1]."""
    name: NDArray[np.str_]
    """(K,) lower case."""
    bbox: Floats
    """(K, 4) pixels: left, top, right, bottom."""
    location: Floats
    """(K, 3) centre of the bottom face."""
    dimensions: Floats
    """(K, 3) length, height, width."""
    rotation_y: Floats
    alpha: Floats

    @property
    def height(self) -> Floats:
        """(K,) height in the image, pixels."""
        return np.abs(self.bbox[:, 3] - self.bbox[:, 1])

    def has_alpha(self) -> bool:
        """True if any object has an observation angle."""
        return bool(np.any(self.alpha != NO_ALPHA))


@dataclass(frozen=True)
class Labels(Objects):
    """Ground truth; DontCare regions are rows like other labels."""

    truncated: Floats
    occluded: Floats

    @property
    def dont_care(self) -> Flags:
        """(K,) rows that are DontCare regions."""
        return self.name == DONT_CARE


@dataclass(frozen=True)
class Detections(Objects):
    """Detections and their scores."""

    score: Floats


def read_labels(annos: Sequence[Mapping[str, Any]]) -> Labels:
    """Read the columns of the ground truth; raises a DataError that names the frame."""
    reader = _Reader(annos, "gt_annos")
    return Labels(
        **reader.objects(), truncated=reader.column("truncated"), occluded=reader.column("occluded")
    )


def read_detections(annos: Sequence[Mapping[str, Any]]) -> Detections:
    """Read the columns of the detections; raises a DataError that names the frame."""
    reader = _Reader(annos, "dt_annos")
    return Detections(**reader.objects(), score=reader.column("score"))


class _Reader:
    def __init__(self, annos: Sequence[Mapping[str, Any]], source: str) -> None:
        self.annos, self.source = annos, source
        self.names = [np.asarray(self._value(i, "name")).reshape(-1) for i in range(len(annos))]

    def objects(self) -> dict[str, Any]:
        """Columns of both labels and detections."""
        counts = [len(names) for names in self.names]
        return {
            "first": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            "name": np.array([str(name).lower() for names in self.names for name in names], dtype=np.str_),
            "bbox": self.column("bbox", 4),
            "location": self.column("location", 3),
            "dimensions": self.column("dimensions", 3),
            "rotation_y": self.column("rotation_y"),
            "alpha": self.column("alpha", default=NO_ALPHA),
        }

    def column(self, key: str, width: int | None = None, default: float | None = None) -> Floats:
        """(K,) or (K, width) float64; ``default`` is used for frames without the key."""
        parts = [self._part(i, key, width, default) for i in range(len(self.annos))]
        return np.concatenate([np.zeros(_shape(0, width)), *parts])

    def _part(self, index: int, key: str, width: int | None, default: float | None) -> Floats:
        count = len(self.names[index])
        if default is not None and key not in self.annos[index]:
            return np.full(_shape(count, width), default)
        value = np.asarray(self._value(index, key))
        wanted = _shape(count, width)
        if count == 0 and value.size == 0:
            return np.zeros(wanted)  # empty frames come as (0,), (0, 4) or []
        if value.shape != wanted or value.dtype.kind not in "fiu":
            raise DataError(
                f"{self._where(index)}: {key!r} must hold numbers of shape {wanted}, one row for each name; "
                f"got {value.dtype} of shape {value.shape}. Filter all columns with the same mask."
            )
        if not np.isfinite(value).all():
            raise DataError(
                f"{self._where(index)}: {key!r} must be finite; got {value[~np.isfinite(value)][0]}. "
                f"The detector has diverged, or the label file is damaged."
            )
        return value.astype(np.float64)

    def _value(self, index: int, key: str) -> Any:
        try:
            return self.annos[index][key]
        except KeyError:
            raise DataError(
                f"{self._where(index)}: an annotation must have the key {key!r}; "
                f"got {sorted(self.annos[index])}. Use an empty array for a frame without objects."
            ) from None

    def _where(self, index: int) -> str:
        frame_id = self.annos[index].get("frame_id")
        return f"{self.source}[{index}]" + ("" if frame_id is None else f" (frame {frame_id})")


def _shape(count: int, width: int | None) -> tuple[int, ...]:
    return (count,) if width is None else (count, width)
