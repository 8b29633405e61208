"""Info files as lists that may be packed: what is known of a frame before its info is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.nuscenes.classes import DETECTION_CLASSES
from pcdet_freeze.datasets.nuscenes.frame import AGAIN, has_boxes, token_of
from pcdet_freeze.datasets.packed import Kind, Rows
from pcdet_freeze.datasets.packed.kinds import Groups, Value
from pcdet_freeze.errors import DataError

LONGEST = 100
"""characters of a token or of the name of a map; a column has as many for each frame"""


def _frames(value: Any, path: Path) -> Groups:
    tokens = map(token_of, value) if isinstance(value, list) else [None]
    if any(token is None or len(token) > LONGEST for token in tokens):
        raise DataError(f"{path}: an info file holds a list of frames with a token; {AGAIN}")
    return {"": value}


def _columns(info: Mapping[str, Any]) -> Mapping[str, Value]:
    names = _names(info)
    return {
        "token": str(token_of(info)),
        "gt_boxes": has_boxes(info),
        "lidarseg_path": "lidarseg_path" in info,
        "location": "location" in info,
        "map": str(info.get("location", ""))[:LONGEST],
        "classes": sum(1 << k for k, name in enumerate(DETECTION_CLASSES) if name in names),
    }


def _names(info: Mapping[str, Any]) -> set[str]:
    """Names of the boxes of an info; none where they are broken, which reading the frame reports."""
    found = info.get("gt_names") if has_boxes(info) else None
    return (
        set(map(str, found))
        if isinstance(found, np.ndarray | list | tuple) and np.ndim(found) == 1
        else set()
    )


NUSCENES_INFOS = Kind(f"{__name__}:NUSCENES_INFOS", 1, _frames, _columns)
"""nuScenes' info files: a list of frames with a token"""


def names_of(infos: Rows, classes: Sequence[str]) -> list[set[str]]:
    """Names of the boxes of each frame; where all ``classes`` are detection classes no info is read."""
    if not set(classes) <= set(DETECTION_CLASSES):
        return [_names(info) for info in infos]
    masks = infos.column("classes").tolist()
    return [{name for k, name in enumerate(DETECTION_CLASSES) if mask >> k & 1} for mask in masks]
