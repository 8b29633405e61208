"""ConcatDataset: the frames of several sets, one after another, with one range, one set of classes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pcdet_freeze.datasets.concat.balance import draw_epoch
from pcdet_freeze.datasets.concat.faults import joined_faults, joined_forms
from pcdet_freeze.datasets.concat.member import (
    NAME,
    PLAIN,
    WITH_VELOCITY,
    Member,
    member_config,
    own_names,
)
from pcdet_freeze.datasets.concat.settings import ConcatSettings, MemberSettings
from pcdet_freeze.datasets.labels.labelled_classes import mark_labelled
from pcdet_freeze.datasets.loader import build_dataset
from pcdet_freeze.datasets.reading.bad_data import OBJECT
from pcdet_freeze.datasets.registry import DATASETS, Config, Sample
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.errors import ConfigError, DataError

PLACES = re.compile(r"DATA_CONFIG\.(DATA_PATH|PROCESSED_DATA_TAG)\b")
"""keys in errors of a set that are its own in a joined one"""


class Part(NamedTuple):
    """The frames of one set in the joined one, for an evaluation of their own."""

    name: str
    frames: slice
    dataset: DatasetTemplate


@DATASETS.register
class ConcatDataset(DatasetTemplate):
    """The sets of DATASETS, in their order; a frame has the labels that its set has.

    ```
    frame of a set -> its labels that are used -> its DATA_AUGMENTOR, in its own frame and names
        -> names, point classes, columns and height of the joined set
        -> DATA_AUGMENTOR and DATA_PROCESSOR of the joined set
    ```

    A frame id is that of its set behind the set's name: ``kitti/000008``. What only some sets have (calib,
    image_shape) lies in ``metadata``.
    """

    Settings = ConcatSettings

    def open_files(self, settings: ConcatSettings) -> None:
        self.box_columns = WITH_VELOCITY if settings.pred_velocity else PLAIN
        self.members = [self._member(name, member) for name, member in settings.datasets.items()]
        self.starts = np.cumsum([0, *map(len, self.members)])
        self.labels = tuple(dict.fromkeys(key for member in self.members for key in member.labels))
        self.labelled_classes = self.labelled_classes or self._labelled_by_members()
        self._frames_per_epoch = settings.frames_per_epoch or len(self)
        self._pools, self._weights = self._balanced(settings)
        self._log_members()

    @classmethod
    def config_faults(cls, dataset_cfg: Config) -> list[str]:
        """Faults of the sets' own configs, and what does not fit together."""
        return joined_faults(cls.read_settings(dataset_cfg), dataset_cfg)

    @classmethod
    def label_forms(cls, dataset_cfg: Config) -> LabelForms:
        """SEMANTIC_CLASSES, or the point classes of all sets; the size of their lane maps."""
        return joined_forms(cls.read_settings(dataset_cfg), dataset_cfg)

    def _member(self, name: str, settings: MemberSettings) -> Member:
        cfg = member_config(settings, self.dataset_cfg)
        names = own_names(self.class_names, settings.class_map)
        try:
            dataset = build_dataset(cfg, names, self.training, logger=self.logger)
        except DataError as error:
            key = f"DATA_CONFIG.DATASETS.{name}"
            text = PLACES.sub(lambda place: f"{key}.{place[0]}", str(error))
            raise DataError(f"{key}: {text}") from error
        missing = sorted({*(settings.labels or ())} - {*dataset.labels})
        if missing and self.training:
            raise DataError(
                f"DATA_CONFIG.DATASETS.{name}.LABELS asks for {', '.join(missing)}, but the set has only "
                f"{', '.join(dataset.labels) or 'none'}"
            )
        columns = self.point_feature_encoder.src_feature_list
        return Member(name, settings, dataset, columns, self.semantic_class_names, self.box_columns)

    def _labelled_by_members(self) -> tuple[str, ...] | None:
        """The classes that boxes of any set are labelled for; None: all."""
        known = [member.labelled_classes for member in self.members if "gt_boxes" in member.labels]
        if not known or any(names is None for names in known):
            return None
        return tuple(dict.fromkeys(name for names in known for name in names or ()))

    @property
    def labelled_together(self) -> list[tuple[str, ...]]:
        """The classes that the boxes of each set are labelled for."""
        given = self.labelled_classes or tuple(self.class_names)
        known = [member.labelled_classes for member in self.members if "gt_boxes" in member.labels]
        return [given if names is None else names for names in known]

    def _balanced(self, settings: ConcatSettings) -> tuple[list[np.ndarray], list[float]]:
        """What an epoch of training draws from, and the share of each; empty where every frame comes once."""
        if settings.balance == "none" or not self.training:
            return [], []
        if settings.balance == "set":
            pools = [np.arange(*ends) for ends in zip(self.starts[:-1], self.starts[1:], strict=True)]
            return pools, [member.weight for member in settings.datasets.values()]
        tasks = settings.tasks or self.labels
        pools = [np.flatnonzero(self.labelled(task)) for task in tasks]
        empty = [task for task, pool in zip(tasks, pools, strict=True) if not len(pool)]
        if empty:
            raise ConfigError(
                f"DATA_CONFIG.TASKS must be labels that some frame has ({', '.join(self.labels)}); got "
                f"{', '.join(empty)}"
            )
        return pools, [1.0] * len(pools)

    def _log_members(self) -> None:
        for member in self.members:
            self.logger.info(
                "%s of the joined set: %d frames of %s, labels: %s",
                member.name,
                len(member),
                type(member.dataset).__name__,
                ", ".join(member.labels) or "none",
            )

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def parts(self) -> list[Part]:
        """The frames of each set."""
        ends = zip(self.members, self.starts[:-1].tolist(), self.starts[1:].tolist(), strict=True)
        return [Part(member.name, slice(first, last), member.dataset) for member, first, last in ends]

    def check_evaluation(self) -> None:
        """Raise ConfigError where the own metric of a set cannot be computed."""
        for member in self.members:
            check: Any = getattr(member.dataset, "check_evaluation", None)
            if check is not None:
                check()

    def _place(self, index: int) -> tuple[Member, int]:
        """The set of frame ``index``, a repetition or not, and its number there."""
        frame = index % len(self)
        number = int(np.searchsorted(self.starts, frame, side="right")) - 1
        return self.members[number], frame - int(self.starts[number])

    def frame_name(self, index: int) -> str:
        """Name of the set and of its frame."""
        member, own = self._place(index)
        return member.frame_name(own)

    def read_frame(self, index: int) -> Sample:
        """The raw frame of its set, and the name of the set in ``metadata``."""
        member, own = self._place(index)
        sample = member.read_frame(own)
        return {**sample, NAME: member.name}

    def load_sample(self, index: int) -> Sample:
        """Frame ``index`` in the form of the joined set, not augmented."""
        member, own = self._place(index)
        return member.converted(member.read_frame(own))

    def prepare_data(self, sample: Sample, rng: np.random.RandomState) -> Sample:
        """Augment as the set does, convert, then what the joined set does."""
        member = self._by_name(sample.pop(NAME))
        mark_labelled(sample, member.dataset.labelled_classes)  # as the set does before it augments
        if member.dataset.data_augmentor is not None:
            sample = member.dataset.data_augmentor(sample, rng)
        return super().prepare_data(member.converted(sample), rng)

    def _by_name(self, name: str) -> Member:
        return next(member for member in self.members if member.name == name)

    @property
    def epoch_length(self) -> int:
        """FRAMES_PER_EPOCH where the epoch is balanced."""
        return self._frames_per_epoch if self._pools else len(self)

    def epoch_frames(self, seed: int, epoch: int) -> np.ndarray:
        """Indices of an epoch; a frame that comes again has other random numbers."""
        if not self._pools:
            return np.arange(len(self))
        return draw_epoch(self._pools, self._weights, self.epoch_length, len(self), seed, epoch)

    def labelled(self, key: str) -> np.ndarray:
        """(len,) bool: the frames with the label ``key``."""
        return np.concatenate([member.labelled(key) for member in self.members])

    def random_state(self, index: int) -> np.random.RandomState:
        """Of a frame and its repetition; of the frame alone where a cache keeps its variants."""
        return super().random_state(index if self.variants is None else index % len(self))

    def cache_row(self, index: int) -> int:
        """Row of the frame, the same for all of its repetitions."""
        return super().cache_row(index % len(self))

    @property
    def random_steps(self) -> list[str]:
        """Names of the random steps of all sets, then those of the joined set."""
        augmentors = [member.dataset.data_augmentor for member in self.members]
        own = [name for augmentor in augmentors if augmentor is not None for name in augmentor.names]
        return [*dict.fromkeys(own), *super().random_steps]

    def totals(self) -> dict[str, int]:
        """Frames, and the database objects of all sets."""
        objects = sum(member.dataset.totals()[OBJECT] for member in self.members)
        own = super().totals()
        return own | {OBJECT: own[OBJECT] + objects}

    def ground_truth_annos(self) -> list[dict[str, Any] | None]:
        """Annotations of all sets, each in the frame and the layout of its set."""
        return [anno for member in self.members for anno in member.ground_truth_annos()]

    def generate_prediction_dicts(
        self,
        batch_dict: dict[str, Any],
        pred_dicts: list[dict[str, Any]],
        class_names: Sequence[str],
        output_path: str | Path | None = None,
    ) -> list[dict[str, Any]]:
        """Predictions as the set of each frame writes them; files go to a folder of each set."""
        found: list[dict[str, Any]] = [{} for _ in pred_dicts]
        frames, metadata = [str(frame) for frame in batch_dict["frame_id"]], batch_dict["metadata"]
        for member in self.members:
            mine = [i for i, frame in enumerate(metadata) if frame[NAME] == member.name]
            if not mine:
                continue
            annos = member.prediction_annos(
                [frames[i] for i in mine],
                [metadata[i] for i in mine],
                [pred_dicts[i] for i in mine],
                class_names,
                None if output_path is None else Path(output_path),
            )
            for i, anno in zip(mine, annos, strict=True):
                found[i] = anno
        return found
