"""From a data config to a data set, and to batches in an order that can be resumed."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import DataLoader, Sampler

from pcdet_freeze.datasets.augmentor import read_augmentors
from pcdet_freeze.datasets.processor import read_processors
from pcdet_freeze.datasets.registry import DATASETS, Config, find
from pcdet_freeze.datasets.settings import OpenDataSettings
from pcdet_freeze.datasets.template import DatasetTemplate
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.sections import read_section


def build_dataset(
    dataset_cfg: Config,
    class_names: Sequence[str],
    training: bool,
    root_path: str | Path | None = None,
    logger: logging.Logger | None = None,
) -> DatasetTemplate:
    """The data set that ``dataset_cfg.DATASET`` names; ConfigError for an unknown one."""
    register_all()
    build = find(DATASETS, dataset_cfg.get("DATASET"))
    return build(dataset_cfg, class_names, training=training, root_path=root_path, logger=logger)


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
    return [
        *faults,
        *read_augmentors(dataset_cfg.get("DATA_AUGMENTOR"))[1],
        *read_processors(dataset_cfg.get("DATA_PROCESSOR"))[1],
    ]


def register_all() -> None:
    """Import every data set of this package, so that each has put its name into the registry."""
    package = importlib.import_module("pcdet_freeze.datasets")
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg:
            importlib.import_module(f"{package.__name__}.{module.name}")


class EpochSampler(Sampler):
    """Indices in an order that is a pure function of (seed, epoch); in file order without shuffling.

    Rank r of world_size W takes indices r, r + W, ... of that order. With ``fill`` (for training) the order
    is filled up from its own beginning to a multiple of W, so that all ranks make the same number of steps;
    without it each frame comes once, and the first ranks may have one frame more.
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
        """Choose the epoch's order, for the data set too; the first ``start_iter`` batches are left out."""
        self.epoch = epoch
        self.start = start_iter * self.batch_size
        self.dataset.set_epoch(epoch)

    def __len__(self) -> int:
        extra = self.world_size - 1 if self.fill else self.world_size - 1 - self.rank
        return (len(self.dataset) + extra) // self.world_size

    def __iter__(self) -> Iterator[int]:
        order = np.arange(len(self.dataset))
        if self.shuffle:
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
    """(dataset, loader, sampler); what the loader yields depends on (seed, epoch) only, not on ``workers``.

    Call ``sampler.set_epoch(epoch)`` before each pass: workers are started anew for each, and learn it then.
    """
    dataset = build_dataset(dataset_cfg, class_names, training, root_path, logger)
    dataset.seed = seed
    share = {"seed": seed, "rank": rank, "world_size": world_size}
    sampler = EpochSampler(dataset, batch_size, shuffle=training, fill=training, **share)
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=workers,
        collate_fn=dataset.collate_batch,
        persistent_workers=False,
        worker_init_fn=_leave_ctrl_c,
    )
    return dataset, loader, sampler


def _leave_ctrl_c(worker: int) -> None:
    """A terminal's Ctrl-C reaches the workers too; the main process answers it, and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
