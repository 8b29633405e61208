"""A StopIteration of user code never ends an epoch: the loader raises an error that names its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from pcdet_freeze.datasets.loader import each_batch
from pcdet_freeze.errors import DataError


class Four(Dataset):
    """Samples 0 to 3."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return index


class BrokenGetItem(Four):
    def __getitem__(self, index: int) -> int:
        return index if index < 2 else next(iter(()))


class BrokenStream(IterableDataset):
    """Says that it has four samples."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[int]:
        return iter(range(2))


class ShortSampler(Sampler):
    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[int]:
        return iter(range(2))


def broken_collate(samples: list[int]) -> int:
    return samples[0] if samples[0] < 2 else next(value for value in samples if value > 9)


def batches_of(loader: Any) -> list[Any]:
    """The batches before the error, and its message."""
    found: list[Any] = []
    with pytest.raises(DataError) as caught:
        for batch in each_batch(loader):
            found.append(batch)
    return [*found, str(caught.value)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("loader", "place"),
    [
        (lambda **more: DataLoader(BrokenGetItem(), batch_size=1, **more), "in __getitem__"),
        (
            lambda **more: DataLoader(Four(), batch_size=1, collate_fn=broken_collate, **more),
            "in broken_collate",
        ),
    ],
)
def test_a_stop_iteration_in_data_set_or_collate_names_its_place(
    loader: Callable[..., DataLoader], place: str, workers: int
) -> None:
    *batches, message = batches_of(loader(num_workers=workers))
    assert [int(batch) for batch in batches] == [0, 1]
    assert "stopped after 2" in message and f"{__file__}, line" in message and place in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_sampler_that_ends_too_early_is_an_error(workers: int) -> None:
    loader = DataLoader(Four(), batch_size=1, sampler=ShortSampler(), num_workers=workers)
    *batches, message = batches_of(loader)
    assert len(batches) == 2 and "must yield 4 batches" in message and "stopped after 2" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_an_iterable_data_set_that_ends_too_early_is_an_error(workers: int) -> None:
    *batches, message = batches_of(DataLoader(BrokenStream(), batch_size=1, num_workers=workers))
    assert len(batches) == 2 and "must yield 4 batches" in message


def test_a_batch_that_is_none_is_an_error() -> None:
    *batches, message = batches_of([1, None, 3])
    assert batches == [1] and "batch 1 of 3 is None" in message


def test_a_whole_epoch_is_yielded_as_the_loader_yields_it() -> None:
    assert [int(batch) for batch in each_batch(DataLoader(Four(), batch_size=1))] == [0, 1, 2, 3]
