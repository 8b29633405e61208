"""One set of a joined one: from its frames to frames of the joined set, and back for its evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.config.easy_dict import EasyDict
from pcdet_freeze.datasets.concat.settings import MemberSettings
from pcdet_freeze.datasets.frames import BOX_KEYS, IGNORE, LABEL_KEYS, POINT_KEYS
from pcdet_freeze.datasets.labels.label_settings import IGNORED
from pcdet_freeze.datasets.labels.labelled_classes import LABELLED_CLASSES, mark_labelled
from pcdet_freeze.datasets.reading.bad_data import BadItem
from pcdet_freeze.datasets.registry import Config, Sample
from pcdet_freeze.datasets.template import DatasetTemplate

STATED = ("ON_BAD_FRAME", "BAD_FRAME_LIMIT", "ON_IMPLAUSIBLE", "TIMEOUT")
"""keys of the joined set that replace those of its sets, besides range, columns and processing"""
OTHER_KEYS = ("frame_id", "bad_data", "road_plane")
NAME = "dataset"
"""key of a sample's ``metadata``: name of its set"""
PLAIN, WITH_VELOCITY = 7, 9
"""columns of a box"""
Anno = dict[str, Any]


def member_config(settings: MemberSettings, joined: Config) -> EasyDict:
    """The set's DATA_CONFIG in the joined set: its own z range, no processing, what the joined set states."""
    limits = [float(bound) for bound in joined["POINT_CLOUD_RANGE"]]
    for axis in (2, 5):
        limits[axis] -= settings.z_offset
    stated = {key: joined[key] for key in STATED if key in joined}
    return EasyDict({**settings.data_config, **stated, "POINT_CLOUD_RANGE": limits, "DATA_PROCESSOR": []})


def own_names(class_names: Sequence[str], class_map: Mapping[str, str]) -> list[str]:
    """The set's own names of the boxes that are of ``class_names`` in the joined set."""
    mapped = [own for own, name in class_map.items() if name in class_names]
    return [*mapped, *(name for name in class_names if name not in class_map)]


def point_class_of(name: str, class_map: Mapping[str, str]) -> str:
    """Name of the set's point class ``name`` in the joined set."""
    return class_map.get(name, name)


class Member:
    """A set within a joined one.

    Args:
        name: of the set, which begins the frame ids.
        settings: of DATASETS.
        dataset: built from :func:`member_config`.
        columns: of the points of the joined set.
        semantic_classes: of the joined set.
        box_columns: 7, or 9 with velocities.
    """

    def __init__(
        self,
        name: str,
        settings: MemberSettings,
        dataset: DatasetTemplate,
        columns: Sequence[str],
        semantic_classes: Sequence[str],
        box_columns: int,
    ) -> None:
        self.name, self.settings, self.dataset = name, settings, dataset
        self.columns, self.box_columns = list(columns), box_columns
        chosen = settings.labels
        self.labels = tuple(key for key in dataset.labels if chosen is None or key in chosen)
        self._dropped = {*LABEL_KEYS, *dataset.labels} - {*self.labels}
        self._classes = self._class_table(semantic_classes)

    def __len__(self) -> int:
        return len(self.dataset)

    def frame_name(self, index: int) -> str:
        """Name of a frame in the joined set."""
        return f"{self.name}/{self.dataset.frame_name(index)}"

    def read_frame(self, index: int) -> Sample:
        """The set's own raw frame, with the labels that are used."""
        sample = self.dataset.read_frame(index)
        for key in self._dropped:
            sample.pop(key, None)
        return sample

    def labelled(self, key: str) -> np.ndarray:
        """(len,) bool: the frames that have the label ``key``, where it is used."""
        return self.dataset.labelled(key) if key in self.labels else np.zeros(len(self), bool)

    def converted(self, sample: Sample) -> Sample:
        """A raw frame of the set, after its augmentation, as one of the joined set.

        What other sets do not have (calib, image_shape, ...) is in ``metadata``, beside the set's name.
        """
        mark_labelled(sample, self.dataset.labelled_classes)
        known = {*POINT_KEYS, *BOX_KEYS, *self.dataset.labels, LABELLED_CLASSES, *OTHER_KEYS}
        out = {key: sample[key] for key in self.labels if sample.get(key) is not None}
        out["points"] = self._points(sample["points"])
        out["frame_id"] = f"{self.name}/{sample['frame_id']}"
        rest = {key: value for key, value in sample.items() if key not in known}
        out["metadata"] = {**rest, NAME: self.name}
        if "gt_boxes" in out:
            out["gt_boxes"] = self._boxes(out["gt_boxes"])
            out["gt_names"] = self.joined_names(sample["gt_names"])
            if LABELLED_CLASSES in sample:
                out[LABELLED_CLASSES] = self._joined_classes(sample[LABELLED_CLASSES])
        if "point_labels" in out and self._classes is not None:
            out["point_labels"] = self._classes[out["point_labels"]]
        if "bad_data" in sample:
            items: list[BadItem] = sample["bad_data"]
            out["bad_data"] = [item._replace(name=f"{self.name}/{item.name}") for item in items]
        return out

    @property
    def labelled_classes(self) -> tuple[str, ...] | None:
        """The classes of the joined set that the set's boxes are labelled for; None: all."""
        own = self.dataset.labelled_classes
        return None if own is None else self._joined_classes(own)

    def _joined_classes(self, names: Sequence[str]) -> tuple[str, ...]:
        """The classes of which all labels are among ``names``: of Car and Van as one, Car alone is a part."""
        own = {str(name) for name in names}
        partly = {joined for label, joined in self.settings.class_map.items() if label not in own}
        joined: list[str] = self.joined_names(names).tolist()
        return tuple(dict.fromkeys(name for name in joined if name not in partly))

    def joined_names(self, names: Any) -> np.ndarray:
        """(K,) names of boxes in the joined set."""
        return np.array([self.settings.class_map.get(str(name), str(name)) for name in names], dtype=str)

    def _points(self, points: np.ndarray) -> np.ndarray:
        own, fill = list(self.dataset.point_feature_encoder.src_feature_list), self.settings.fill
        moved = self.settings.z_offset
        if own == self.columns and not fill and not moved:
            return points
        out = np.empty((len(points), len(self.columns)), np.float32)
        for number, column in enumerate(self.columns):
            out[:, number] = fill[column] if column in fill else points[:, own.index(column)]
        out[:, 2] += np.float32(moved)
        return out

    def _boxes(self, boxes: np.ndarray) -> np.ndarray:
        out = np.full((len(boxes), self.box_columns), np.nan, np.float32)
        shared = min(boxes.shape[1], self.box_columns)
        out[:, :shared] = boxes[:, :shared]
        out[:, 2] += np.float32(self.settings.z_offset)
        return out

    def _class_table(self, joined: Sequence[str]) -> np.ndarray | None:
        """(256,) int64: class in the joined set of each of the set's point classes; None: the same."""
        names = [point_class_of(name, self.settings.point_class_map)
                 for name in self.dataset.semantic_class_names]  # fmt: skip
        if "point_labels" not in self.labels or names == list(joined[: len(names)]):
            return None
        table = np.full(IGNORE + 1, IGNORE, np.int64)
        for number, name in enumerate(names):
            table[number] = IGNORE if name.lower() == IGNORED else joined.index(name)
        return table

    def ground_truth_annos(self) -> list[Anno | None]:
        """Annotations of the set in its own frame, with the names of the joined set; None: no box labels."""
        if "gt_boxes" not in self.labels:
            return [None] * len(self)
        return [
            anno if anno is None else self._joined_anno(anno) for anno in self.dataset.ground_truth_annos()
        ]

    def _joined_anno(self, anno: Anno) -> Anno:
        labelled = anno.get(LABELLED_CLASSES, self.dataset.labelled_classes)
        classes = {} if labelled is None else {LABELLED_CLASSES: self._joined_classes(labelled)}
        return {**anno, "name": self.joined_names(anno["name"]), **classes}

    def prediction_annos(
        self,
        frame_ids: Sequence[str],
        metadata: Sequence[Mapping[str, Any]],
        pred_dicts: Sequence[Mapping[str, Any]],
        class_names: Sequence[str],
        output_path: Path | None,
    ) -> list[Anno]:
        """Predictions for frames of this set, in its own frame; ``frame_id`` is that of the joined set."""
        batch: dict[str, Any] = {"frame_id": [frame.removeprefix(f"{self.name}/") for frame in frame_ids]}
        for key in metadata[0]:
            batch[key] = [frame[key] for frame in metadata]
        own = [self._in_own_frame(found) for found in pred_dicts]
        folder = None if output_path is None else output_path / self.name
        annos = self.dataset.generate_prediction_dicts(batch, own, class_names, folder)
        return [anno | {"frame_id": frame} for anno, frame in zip(annos, frame_ids, strict=True)]

    def _in_own_frame(self, found: Mapping[str, Any]) -> dict[str, Any]:
        if not self.settings.z_offset:
            return dict(found)
        boxes = found["pred_boxes"].clone()
        boxes[:, 2] -= self.settings.z_offset
        return {**found, "pred_boxes": boxes}
