"""Which frames of a data set are used: bad and empty ones are skipped in training, and named."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np

from pcdet_freeze.datasets.augmentor import DataAugmentor
from pcdet_freeze.datasets.frames import LABEL_KEYS, check_labels, without_none_labels
from pcdet_freeze.datasets.reading.bad_data import FRAME, OBJECT, BadFramePolicy, BadItem
from pcdet_freeze.datasets.registry import Sample
from pcdet_freeze.errors import DataError


class UsableFramesMixin:
    """The part of :class:`DatasetTemplate` that reads a frame, or the next one that can be used."""

    labels: tuple[str, ...]
    semantic_class_names: tuple[str, ...]
    lane_map_shape: tuple[int, int] | None
    class_names: list[str]
    training: bool
    root_path: Path
    logger: logging.Logger
    policy: BadFramePolicy
    keep_empty_frames: bool
    data_augmentor: DataAugmentor | None
    variants: int | None
    reading: Callable[[int], None] = staticmethod(lambda index: None)
    """is called with the index of each frame before it is read, and with -1 afterwards"""
    _warned: set[str]
    load_sample: Callable[[int], Sample]
    frame_name: Callable[[int], str]
    prepare_data: Callable[[Sample, np.random.RandomState], Sample]
    random_state: Callable[[int], np.random.RandomState]
    cache_entry: Callable[[int, Sample], np.ndarray]

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__} must say how many frames it has (__len__)")

    def __getitem__(self, index: int) -> Sample:
        """Return sample ``index``; in training skip bad frames and name them in ``skipped_frames``."""
        try:
            return self._sample(index)
        finally:
            self.reading(-1)

    def _sample(self, index: int) -> Sample:
        skipped: list[str] = []
        bad: list[BadItem] = []
        first = ""
        frames = len(self)
        repetition = index // max(frames, 1) * frames
        for step in range(frames):
            current = (index + step) % frames + repetition
            self.reading(current)
            try:
                raw = self.read_frame(current)
            except DataError as error:
                if not self.training:
                    raise
                if not self.policy.skip:
                    raise DataError(f"{error}. DATA_CONFIG.ON_BAD_FRAME: skip leaves it out") from error
                reason, level = str(error), logging.WARNING
                bad.append(BadItem(FRAME, self.frame_name(current), reason))
            else:
                sample = self.prepare_data(raw, self.random_state(current))
                bad += sample.pop("bad_data", [])
                if not self._is_empty(sample):
                    sample["skipped_frames"] = skipped
                    if bad:
                        sample["bad_data"] = bad
                    if self.variants is not None:
                        sample["cache_entry"] = self.cache_entry(current, sample)
                    return sample
                reason, level = f"no point or no box of {', '.join(self.class_names)} in range", logging.INFO
            self._skip(current, reason, skipped, level)
            first = first or f"frame {skipped[0]}: {reason}"
        raise DataError(
            f"{type(self).__name__} at {self.root_path} has no usable frame: all {len(self)} were skipped, "
            f"each with its reason in the log; {first}"
        )

    def read_frame(self, index: int) -> Sample:
        """Raw frame ``index`` with the labels that it has; raises DataError where they do not fit it."""
        raw = without_none_labels(self.load_sample(index), self.labels)
        return check_labels(raw, len(self.semantic_class_names), self.lane_map_shape)

    def totals(self) -> dict[str, int]:
        """How many frames and database objects there are, of which some may be bad."""
        steps = self.data_augmentor.steps if self.data_augmentor is not None else []
        return {FRAME: len(self), OBJECT: sum(getattr(step, "size", 0) for step in steps)}

    def _is_empty(self, sample: Sample) -> bool:
        if not self.training:
            return False
        no_box = "gt_boxes" in sample and len(sample["gt_boxes"]) == 0
        others = any(sample.get(key) is not None for key in {*LABEL_KEYS, *self.labels} - {"gt_boxes"})
        return len(sample["points"]) == 0 or (no_box and not others and not self.keep_empty_frames)

    def _skip(self, index: int, reason: str, skipped: list[str], level: int) -> None:
        name = self.frame_name(index)
        skipped.append(name)
        if name not in self._warned:
            self._warned.add(name)
            self.logger.log(level, "skipped frame %s (%d so far): %s", name, len(self._warned), reason)
