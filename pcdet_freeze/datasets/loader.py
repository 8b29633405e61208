"""Build a data set and its loader from a data config; the order of the batches can be resumed."""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch.utils.data import DataLoader, Sampler

from pcdet_freeze.datasets.augmentor import read_augmentors
from pcdet_freeze.datasets.processor import read_processors
from pcdet_freeze.datasets.reading import frame_loader
from pcdet_freeze.datasets.reading.frame_loader import FrameLoader
from pcdet_freeze.datasets.reading.timed_reads import limit_of, reads_within
from pcdet_freeze.datasets.registry import DATASETS, Config, find
from pcdet_freeze.datasets.settings import OpenDataSettings
from pcdet_freeze.datasets.template import DatasetTemplate, LabelForms
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.utils.settings.sections import read_section
from pcdet_freeze.utils.stop_iteration import raised_in


def build_dataset(
    dataset_cfg: Config,
    class_names: Sequence[str],
    training: bool,
    root_path: str | Path | None = None,
    logger: logging.Logger | None = None,
) -> DatasetTemplate:
    """Build the data set that ``dataset_cfg.DATASET`` names.

    Raises ConfigError for an unknown one, and ReadTimeoutError for a file that is not read within
    DATA_CONFIG.TIMEOUT.
    """
    register_all()
    build = find(DATASETS, dataset_cfg.get("DATASET"))
    with reads_within(limit_of(dataset_cfg)):
        return build(dataset_cfg, class_names, training=training, root_path=root_path, logger=logger)


def label_forms_of(dataset_cfg: Config) -> LabelForms:
    """Point classes and size of the lane maps of a config, without its files; none if they are not known."""
    register_all()
    name = str(dataset_cfg.get("DATASET"))
    forms = getattr(DATASETS.get(name), "label_forms", None) if name in DATASETS else None
    return forms(dataset_cfg) if forms is not None else LabelForms((), None)


def data_faults(dataset_cfg: object) -> list[str]:
    """Every fault of DATA_CONFIG that can be seen without a file: of the data set and of each step."""
    register_all()
    if not isinstance(dataset_cfg, Mapping):
        return [f"DATA_CONFIG must be a section (a mapping of keys); got {dataset_cfg!r}"]
    try:
        build = find(DATASETS, dataset_cfg.get("DATASET"))
    except ConfigError as error:
        return [str(error)]
    _, faults = read_section(getattr(build, "Settings", OpenDataSettings), dataset_cfg, "DATA_CONFIG")
    if not faults and hasattr(build, "config_faults"):
        faults = build.config_faults(dataset_cfg)
    return [
        *faults,
        *read_augmentors(dataset_cfg.get("DATA_AUGMENTOR"))[1],
        *read_processors(dataset_cfg.get("DATA_PROCESSOR"))[1],
    ]


def register_all() -> None:
    """Import every data set of this package, so that each is in the registry."""
    package = importlib.import_module("pcdet_freeze.datasets")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")


class EpochSampler(Sampler):
    """Indices in an order that is a pure function of (seed, epoch); in file order without shuffling.

    With ``shuffle`` an epoch has the frames that ``dataset.epoch_frames`` chooses: each once, unless the data
    set balances its frames.

    Rank r of world_size W has indices r, r + W, ... of that order. With ``fill`` (for training) the order is
    padded from its own beginning to a multiple of W, so that all ranks take the same number of steps; without
    it each frame occurs once, and the first ranks may have one frame more.
    ``len()`` is the length of a whole epoch for this rank, also after ``set_epoch(epoch, start_iter)``.
    """

    def __init__(
        self,
        dataset: DatasetTemplate,
        batch_size: int,
        *,
        shuffle: bool,
        fill: bool = True,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank must lie in 0..world_size - 1; got rank {rank} of {world_size}")
        self.dataset, self.batch_size, self.shuffle, self.fill = dataset, batch_size, shuffle, fill
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.epoch = 0
        self.start = 0

    def set_epoch(self, epoch: int, start_iter: int = 0) -> None:
        """Choose the epoch's order, for the data set too; the first ``start_iter`` batches are skipped."""
        self.epoch = epoch
        self.start = start_iter * self.batch_size
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        extra = self.world_size - 1 if self.fill else self.world_size - 1 - self.rank
        frames = self.dataset.epoch_length if self.shuffle else len(self.dataset)
        return (frames + extra) // self.world_size

    def __iter__(self) -> Iterator[int]:
        order = np.arange(len(self.dataset))
        if self.shuffle:
            order = self.dataset.epoch_frames(self.seed, self.epoch)
            order = np.random.RandomState([self.seed & 0xFFFFFFFF, self.epoch]).permutation(order)
        if self.fill:
            order = np.resize(order, len(self) * self.world_size)
        return iter(order[self.rank :: self.world_size][self.start :].tolist())


def build_dataloader(
    dataset_cfg: Config,
    class_names: Sequence[str],
    batch_size: int,
    *,
    training: bool,
    workers: int = 0,
    root_path: str | Path | None = None,
    logger: logging.Logger | None = None,
    seed: int = 0,
    rank: int = 0,
    world_size: int = 1,
) -> tuple[DatasetTemplate, DataLoader, EpochSampler]:
    """Return (dataset, loader, sampler); batches depend on (seed, epoch) only, not on ``workers``.

    Call ``sampler.set_epoch(epoch)`` before each pass: workers are started for each pass and get it then.
    """
    dataset = build_dataset(dataset_cfg, class_names, training, root_path, logger)
    dataset.seed = seed
    share = {"seed": seed, "rank": rank, "world_size": world_size}
    sampler = EpochSampler(dataset, batch_size, shuffle=training, fill=training, **share)
    loader = FrameLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=dataset.collate_batch,
        persistent_workers=False,
    )
    return dataset, loader, sampler


class Loader(Protocol):
    """What a training or an evaluation iterates over: a DataLoader, a list of batches."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""

    def __iter__(self) -> Iterator[Any]:
        """Start an epoch."""


class EpochOrder(Protocol):
    """A sampler whose order is a function of the epoch."""

    def set_epoch(self, epoch: int, start_iter: int = 0) -> None:
        """Choose the order of ``epoch`` (0-based) and skip its first ``start_iter`` batches."""


def next_batch(batches: Iterator[Any], number: int, length: int) -> Any:
    """Return batch ``number`` (0-based) of an epoch of ``length`` batches.

    A StopIteration that a data set, a collate function or a sampler raises by mistake looks like the end of
    the epoch, in the main process and in workers. The number of batches tells the two apart.

    Raises:
        DataError: the iterator ends before ``length`` batches, or yields None; the message names the file
            and line of the StopIteration where there is one.
    """
    try:
        batch = next(batches)
    except StopIteration as stop:
        place = raised_in(stop, __file__, frame_loader.__file__)
        cause = f" on a StopIteration raised in {place}" if place else ""
        raise DataError(
            f"The loader must yield {length} batches an epoch, as its len() says, but it stopped after "
            f"{number}{cause}. Check the data set, the collate function and the sampler for a next() without "
            "a default, or correct the loader's __len__."
        ) from stop
    if batch is None:
        raise DataError(
            f"The loader must yield a batch, but batch {number} of {length} is None. Let the collate "
            "function return a dict, and leave unusable frames out of the data set."
        )
    return batch


def each_batch(loader: Loader) -> Iterator[Any]:
    """Yield ``len(loader)`` batches, then end the workers, as after an error.

    Raises DataError where the loader stops before (see `next_batch`).
    """
    batches = iter(loader)
    try:
        for number in range(len(loader)):
            yield next_batch(batches, number, len(loader))
    finally:
        shut_down_workers(loader, batches)


def shut_down_workers(loader: Loader, batches: Iterator[Any]) -> None:
    """Shut down the worker processes of an epoch that may have been left early.

    Without this they live as long as a traceback refers to the iterator, in a notebook until the next error.
    Persistent workers belong to the loader and stay.
    """
    shut_down = getattr(batches, "_shutdown_workers", None)  # torch has no public name for it
    if shut_down is not None and not getattr(loader, "persistent_workers", False):
        shut_down()
