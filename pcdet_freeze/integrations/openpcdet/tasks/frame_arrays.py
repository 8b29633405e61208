"""Labels that are one array a frame (a BEV map), and the augmentation that they must follow."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np

from pcdet_freeze.errors import DataError
from pcdet_freeze.integrations.openpcdet.tasks.point_columns import LOCAL, WORLD, Step, step_name
from pcdet_freeze.integrations.openpcdet.tasks.registry import Labels

MATRIX = "_pcdet_freeze_matrix"
"""in a frame during its augmentation: (4, 4) float64, augmented xyz1 = matrix @ original xyz1"""
KEEPS_FRAME = (*LOCAL, "DataBaseSampler")
"""augmentors that do not move the scene as a whole"""
_PROBE = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)


def read_array(frame: dict[str, Any], dataset: Any, labels: Labels) -> np.ndarray:
    """The array of a frame. Raises DataError if there is none."""
    found = frame.get(labels.key) if labels.read is None else labels.read(frame, dataset)
    if found is None:
        raise DataError(
            f"Each frame must have {labels.key!r}, but frame {frame.get('frame_id')} has none. Return an "
            "array that is filled with the value to ignore."
        )
    return np.asarray(found)


def check_augmentors(queue: Sequence[Any], labels: Labels) -> None:
    """Raise DataError if an augmentor would move the points and not the array."""
    names = [step_name(step) for step in queue]
    unknown = [name for name in names if name not in (*WORLD, *KEEPS_FRAME)]
    world = [name for name in names if name in WORLD]
    if unknown:
        raise DataError(
            f"{labels.key!r} has one array a frame, which cannot follow {', '.join(unknown)}. Add it to "
            "DATA_AUGMENTOR.DISABLE_AUG_LIST."
        )
    if world and labels.transform is None:
        raise DataError(
            f"{labels.key!r} has one array a frame, which must follow {', '.join(world)}: pass "
            "add_task(..., transform=function of (array, matrix)), or add them to "
            "DATA_AUGMENTOR.DISABLE_AUG_LIST."
        )


class TrackMatrix:
    """One augmentor of OpenPCDet; the matrix in the frame follows what it does to the points."""

    def __init__(self, step: Step) -> None:
        self.step = step

    def __call__(self, data_dict: dict[str, Any]) -> dict[str, Any]:
        if step_name(self.step) in WORLD:
            data_dict[MATRIX] = _matrix(self.step) @ data_dict[MATRIX]
        return self.step(data_dict=data_dict)


def _matrix(step: Step) -> np.ndarray:
    """(4, 4): what the next call of ``step`` will do, by a call with unit vectors in the same RNG state."""
    state, python_state = np.random.get_state(), random.getstate()
    moved = step(data_dict={"points": _PROBE.copy(), "gt_boxes": np.zeros((1, 7), np.float32)})["points"]
    np.random.set_state(state)
    random.setstate(python_state)
    matrix = np.eye(4)
    matrix[:3, 3] = moved[0, :3]
    matrix[:3, :3] = (moved[1:, :3].astype(np.float64) - moved[0, :3]).T
    return matrix
