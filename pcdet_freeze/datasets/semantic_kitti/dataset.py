"""SemanticKittiDataset: a class for each point of the sweeps of KITTI's odometry sequences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from pcdet_freeze.datasets.checks import check_frames, raise_or_warn
from pcdet_freeze.datasets.file_formats.files import read_bin, replacing
from pcdet_freeze.datasets.labels.label_files import read_semantic
from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.semantic_kitti.classes import classes_of, semantic_settings
from pcdet_freeze.datasets.semantic_kitti.sweeps import find_sweeps
from pcdet_freeze.datasets.settings import DataSettings, Modes
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.utils.settings.rules import Rule, whole
from pcdet_freeze.utils.untrusted_files.inside import inside

NUM_FEATURES = 4
"""columns of a point file: x, y, z, intensity"""
Sequences = Annotated[
    tuple[Annotated[int, whole(0, 99)], ...], Rule("a list of the numbers of sequences, [0, 1, 2]", bool)
]


@dataclass(frozen=True, kw_only=True)
class SemanticKittiSettings(DataSettings):
    """DATA_CONFIG of SemanticKittiDataset; DATA_PATH holds sequences/."""

    sequences: Modes[Sequences]
    moving_classes: bool = False
    """25 classes, six of them for what moves; false: 19 classes"""


@DATASETS.register
class SemanticKittiDataset(DatasetTemplate):
    """Sweeps of ``SEQUENCES``, in the LiDAR's frame. A sweep without a label file is partially labelled."""

    Settings = SemanticKittiSettings
    absent_classes_count = True
    """the official mean is over all classes: one without a labelled point has an IoU of 0"""

    def open_files(self, settings: SemanticKittiSettings) -> None:
        self.semantic = semantic_settings(settings.moving_classes)
        self.numbers = np.array([found[0] for found in classes_of(settings.moving_classes).values()], "<u4")
        self.sweeps = find_sweeps(self.root_path, settings.sequences.of(self.training))
        labelled = sum(sweep.labelled for sweep in self.sweeps)
        self.logger.info(
            "SemanticKITTI %s: %d of %d sweeps have labels", self.mode, labelled, len(self.sweeps)
        )
        if self.training and not labelled:
            raise DataError(
                f"SEQUENCES.train must have label files, but none of the {len(self.sweeps)} sweeps in "
                f"{self.root_path / 'sequences'} has labels/<sweep>.label; sequences 0 to 10 have them"
            )
        self.labels = ("point_labels",) if labelled else ()
        limits, strict = self.point_cloud_range.tolist(), settings.on_implausible == "raise"
        findings = check_frames(self._raw_points, len(self), NUM_FEATURES, limits)
        raise_or_warn(findings, str(self.root_path), self.logger, strict)

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """The classes of SemanticKITTI, 19 or 25."""
        settings: SemanticKittiSettings = cls.read_settings(dataset_cfg)
        return LabelForms(semantic_settings(settings.moving_classes).classes, None)

    def _raw_points(self, index: int) -> bytes | None:
        path = self.sweeps[index].points
        try:
            return timed(path, path.read_bytes)
        except OSError:
            return None

    def __len__(self) -> int:
        return len(self.sweeps)

    def frame_name(self, index: int) -> str:
        return self.sweeps[index].name

    def load_sample(self, index: int) -> Sample:
        """points (N, 4); point_labels (N,) where the sweep has a label file."""
        sweep = self.sweeps[index]
        points = read_bin(sweep.points, NUM_FEATURES)
        sample: Sample = {"points": points, "frame_id": sweep.name}
        if sweep.labelled:
            sample["point_labels"] = read_semantic(sweep.labels, len(points), self.semantic)
        return sample

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """No sweep has boxes."""
        return [None] * len(self)

    def write_predictions(
        self, batch_dict: Mapping[str, Any], pred_dicts: Sequence[Mapping[str, Any]], folder: Path
    ) -> None:
        """Write ``sequences/<s>/predictions/<sweep>.label``, the files of a submission, below ``folder``.

        Raises ConfigError where DATA_PROCESSOR changes the order of the points, DataError where points of the
        sweep were left out.
        """
        if self.data_processor.random_steps:
            raise ConfigError(
                "a submission needs the points in the order of their files, but DATA_PROCESSOR has "
                f"{', '.join(self.data_processor.random_steps)}. Set SHUFFLE_ENABLED.test: False, and remove "
                "other steps that draw points"
            )
        for frame_id, prediction in zip(batch_dict["frame_id"], pred_dicts, strict=True):
            if "pred_point_labels" not in prediction:
                continue
            sequence, _, stem = str(frame_id).partition("_")
            source = self.root_path / "sequences" / sequence / "velodyne" / f"{stem}.bin"
            labels = np.asarray(prediction["pred_point_labels"].cpu())
            points = timed(source, source.stat).st_size // (4 * NUM_FEATURES)
            if len(labels) != points:
                raise DataError(
                    f"a submission needs a class for each of the {points} points of sweep {frame_id}; got "
                    f"{len(labels)}. Remove mask_points_and_boxes_outside_range from DATA_PROCESSOR"
                )
            place = f"sequences/{sequence}/predictions/{stem}.label"
            with replacing(inside(folder, place, "a sweep's file"), sync=False) as write:
                write(self.numbers[labels].tobytes())
