"""Add the labels of tasks to a data set of OpenPCDet.

What is changed lies on the data set object, not on its class: data workers that are spawned (OpenPCDet does
so under its launchers) receive the object by pickle and know nothing of the plugin.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from pcdet_freeze.errors import DataError, IntegrationError
from pcdet_freeze.integrations.openpcdet.tasks.attributes import set_attribute
from pcdet_freeze.integrations.openpcdet.tasks.frame_arrays import (
    MATRIX,
    TrackMatrix,
    check_augmentors,
    read_array,
)
from pcdet_freeze.integrations.openpcdet.tasks.point_columns import CarryColumns, label_columns
from pcdet_freeze.integrations.openpcdet.tasks.registry import Labels


def attach(dataset: Any, labels: Sequence[Labels]) -> None:
    """Make every frame of ``dataset`` carry ``labels``.

    Raises:
        IntegrationError: it has no ``prepare_data``.
        DataError: an array of a frame cannot follow the augmentation.
    """
    if not callable(getattr(dataset, "prepare_data", None)):
        raise IntegrationError(
            "Labels are added in prepare_data of OpenPCDet's DatasetTemplate, but "
            f"{type(dataset).__name__} has none. Derive the data set from DatasetTemplate."
        )
    encoder = getattr(dataset, "point_feature_encoder", None)
    if not hasattr(encoder, "src_feature_list") and any(spec.per == "point" for spec in labels):
        raise IntegrationError(
            "Labels of points need a data set whose point_feature_encoder has src_feature_list, but that of "
            f"{type(dataset).__name__} has none. Use per='frame', or a data set of OpenPCDet."
        )
    queue = getattr(getattr(dataset, "data_augmentor", None), "data_augmentor_queue", [])
    for spec in labels:
        if spec.per == "frame":
            check_augmentors(queue, spec)
    set_attribute(dataset, "prepare_data", PrepareWithLabels(dataset, labels))


def original(owner: Any, name: str) -> Any:
    """The method of the class of ``owner``, bound, although the object has an attribute of that name."""
    return inspect.getattr_static(type(owner), name).__get__(owner, type(owner))


class PrepareWithLabels:
    """Replaces ``dataset.prepare_data``: reads the labels, and lets them follow the points."""

    def __init__(self, dataset: Any, labels: Sequence[Labels]) -> None:
        self.dataset = dataset
        self.of_points = tuple(spec for spec in labels if spec.per == "point")
        self.of_frames = tuple(spec for spec in labels if spec.per == "frame")
        self._carries = False
        # not while the columns are carried, when the encoder counts them
        self._features = dataset.point_feature_encoder.num_point_features if self.of_points else 0

    def __call__(self, data_dict: dict[str, Any]) -> dict[str, Any]:
        frame = dict(data_dict)
        arrays = {spec.key: read_array(data_dict, self.dataset, spec) for spec in self.of_frames}
        if self.of_points:
            frame["points"] = self._with_columns(data_dict)
        for spec in (*self.of_points, *self.of_frames):
            frame.pop(spec.key, None)
        if self.of_frames:
            frame[MATRIX] = np.eye(4)
        with self._carrying():
            result = original(self.dataset, "prepare_data")(frame)
        # without boxes OpenPCDet takes another frame, which has been here already
        if any(spec.key in result for spec in (*self.of_points, *self.of_frames)):
            return dict(result)
        self._split(result)
        matrix = result.pop(MATRIX, None)
        for spec in self.of_frames:
            result[spec.key] = self._transformed(arrays[spec.key], matrix, spec)
        return dict(result)

    def _with_columns(self, frame: dict[str, Any]) -> np.ndarray:
        points = frame.get("points")
        if points is None:
            raise DataError(f"Labels of points need points, but frame {frame.get('frame_id')} has none.")
        columns = [label_columns(points, frame, self.dataset, spec) for spec in self.of_points]
        return np.column_stack([points, *columns])

    def _split(self, result: dict[str, Any]) -> None:
        """Take the columns off the points."""
        if not self.of_points:
            return
        points, expected = result["points"], self._features
        width = points.shape[1] - len(self.of_points)
        if width != expected:
            raise IntegrationError(
                f"The points of a frame must have {expected} features and {len(self.of_points)} label "
                f"columns, but this OpenPCDet made {points.shape[1]} columns: its point encoder is not "
                "supported."
            )
        result["points"] = np.ascontiguousarray(points[:, :width])
        for k, spec in enumerate(self.of_points):
            result[spec.key] = points[:, width + k].astype(np.float32)

    def _transformed(self, array: np.ndarray, matrix: np.ndarray | None, spec: Labels) -> np.ndarray:
        if spec.transform is None or matrix is None or np.array_equal(matrix, np.eye(4)):
            return array
        return np.asarray(spec.transform(array, matrix))

    @contextmanager
    def _carrying(self) -> Iterator[None]:
        """Context in which the augmentor, the encoder and the processor of the data set keep the columns."""
        if self._carries:  # prepare_data of another frame, inside prepare_data
            yield
            return
        self._carries, undo = True, []
        keys = [f"label {spec.key}" for spec in self.of_points]  # unlike the name of any feature
        encoder = self.dataset.point_feature_encoder
        changes: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (self.dataset.data_augmentor, "data_augmentor_queue", self._augmentors),
            (self.dataset.data_processor, "data_processor_queue", self._processors),
            (encoder, "src_feature_list", lambda names: [*names, *keys]),
            (encoder, "used_feature_list", lambda names: [*names, *keys]),
        ]
        try:
            for owner, name, change in changes:
                if owner is not None:  # no augmentor in tests
                    undo.append((owner, name, getattr(owner, name)))
                    setattr(owner, name, change(getattr(owner, name)))
            yield
        finally:
            for owner, name, value in undo:
                setattr(owner, name, value)
            self._carries = False

    def _augmentors(self, queue: Sequence[Any]) -> list[Any]:
        steps = self._processors(queue)
        return [TrackMatrix(step) for step in steps] if self.of_frames else steps

    def _processors(self, queue: Sequence[Any]) -> list[Any]:
        return [CarryColumns(step, self.of_points) for step in queue]


class CollateWithLabels:
    """Replaces ``collate_batch``: labels of points are concatenated like ``points``, arrays stacked."""

    def __init__(self, collate: Callable[..., dict[str, Any]], labels: Sequence[Labels]) -> None:
        self.collate, self.labels = collate, tuple(labels)

    def __call__(self, batch_list: list[dict[str, Any]]) -> dict[str, Any]:
        samples = [dict(sample) for sample in batch_list]
        found = [(spec, [sample.pop(spec.key) for sample in samples]) for spec in self.labels]
        batch = self.collate(samples)
        for spec, values in found:
            batch[spec.key] = np.concatenate(values) if spec.per == "point" else np.stack(values)
        return batch
