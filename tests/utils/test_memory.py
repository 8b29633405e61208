"""Peak memory of live tensors."""

from __future__ import annotations

from typing import Any

import torch

from pcdet_freeze.utils.memory import optimizer_tensors, peak_bytes, storages

FLOAT = 4
CPU = torch.device("cpu")


def test_the_peak_counts_storages_that_are_alive_at_the_same_time() -> None:
    def step() -> None:
        first = torch.ones(1000)
        second = first + 1
        del first
        third = second.view(10, 100).add_(1) + 1
        del second
        torch.cat([third, third])

    assert peak_bytes(step, [], CPU) == 3000 * FLOAT


def test_the_peak_includes_existing_tensors() -> None:
    existing = torch.ones(1000)
    assert peak_bytes(lambda: existing.view(-1).add_(1), [existing, existing[:10]], CPU) == 1000 * FLOAT
    assert peak_bytes(lambda: existing + 1, [existing], CPU) == 2000 * FLOAT


def test_a_resized_storage_counts_with_its_new_size() -> None:
    def step() -> Any:
        return torch.empty(0).resize_(100)

    assert peak_bytes(step, [], CPU) == 100 * FLOAT


def test_storages_are_those_of_dense_tensors_and_views_repeat_theirs() -> None:
    whole = torch.ones(4)
    found = storages([whole, whole[:2], torch.eye(2).to_sparse(), "text"])
    assert [storage.data_ptr() for storage in found] == [whole.data_ptr()] * 2


def test_optimizer_tensors_are_the_tensors_of_its_state() -> None:
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adam([parameter])
    assert optimizer_tensors(optimizer) == []
    parameter.sum().backward()
    optimizer.step()
    assert sorted(tensor.numel() for tensor in optimizer_tensors(optimizer)) == [1, 3, 3]
