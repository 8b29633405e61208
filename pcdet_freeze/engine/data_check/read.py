"""Read frames and count what they hold: a few in this process, or all in parallel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from pcdet_freeze.datasets.checks.frame_survey import FrameSurvey, survey_frame
from pcdet_freeze.datasets.loader import EpochSampler, each_batch
from pcdet_freeze.datasets.reading.frame_loader import FrameLoader
from pcdet_freeze.datasets.reading.lone_reader import lone_reader
from pcdet_freeze.datasets.reading.timed_reads import ReadTimeoutError, reads_within
from pcdet_freeze.utils.progress import progress
from pcdet_freeze.utils.rng import untouched_rng

SAMPLE = 20
"""frames of the short form"""
BUDGET_S = 1.0
"""seconds behind its first frame after which the short form begins no further one"""
_SPREAD = 7


class SurveyedFrames:
    """Stands for a data set in a loader: an item is the survey of a frame."""

    reading: Callable[[int], None] = staticmethod(lambda index: None)

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.timeout, self.frame_name = dataset, dataset.timeout, dataset.frame_name

    def __len__(self) -> int:
        return len(self.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Surveys do not depend on it."""

    def __getitem__(self, index: int) -> FrameSurvey:
        self.reading(index)
        try:
            return survey_frame(self.dataset, index)
        finally:
            self.reading(-1)


def survey_all(dataset: Any, workers: int) -> list[FrameSurvey]:
    """Survey every frame, in ``workers`` processes (0: in this one), with a progress bar on a terminal.

    Raises DataError for a frame that is not read within DATA_CONFIG.TIMEOUT.
    """
    frames: Any = SurveyedFrames(dataset)
    order = EpochSampler(frames, 1, shuffle=False, fill=False)
    loader = FrameLoader(frames, batch_size=1, sampler=order, num_workers=workers, collate_fn=_only)
    with untouched_rng(accelerators=False):
        return list(progress(each_batch(loader), len(frames), "check", "frame"))


def _only(surveys: Sequence[FrameSurvey]) -> FrameSurvey:
    return surveys[0]


def survey_some(dataset: Any, budget_s: float = BUDGET_S) -> list[FrameSurvey]:
    """Survey SAMPLE frames, evenly spaced, or those of them that are read within ``budget_s`` seconds.

    Reads raw frames of a copy (:func:`lone_reader`): no frame counts as a bad one of the training, no random
    number is drawn, and no file stays open. It ends where a read does not return: the training's own error
    will name the frame.
    """
    found: list[FrameSurvey] = []
    dataset, begin = lone_reader(dataset), 0.0
    with untouched_rng(accelerators=False), reads_within(dataset.timeout):
        for index in _spread(len(dataset)):
            if found and time.monotonic() - begin > budget_s:
                break
            try:
                found.append(survey_frame(dataset, index))
            except ReadTimeoutError:
                break
            begin = begin or time.monotonic()  # in the first frame numba may compile functions
    return sorted(found, key=lambda frame: frame.index)


def _spread(frames: int) -> Iterator[int]:
    """Evenly spaced indices in an order whose first ones are spread, too."""
    count = min(SAMPLE, frames)
    if not count:
        return
    chosen = np.linspace(0, frames - 1, count).round().astype(int)
    step = _SPREAD if count % _SPREAD else 1
    yield from (int(chosen[number * step % count]) for number in range(count))
