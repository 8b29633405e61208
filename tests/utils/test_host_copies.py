"""Tensors of a device are copied to the host together, with the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import fake_device
import pytest
import torch
from fake_device import on_device
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from pcdet_freeze.utils.host_copies import host_copies, pack, to_host, unpack
from pcdet_freeze.utils.tensors import same_bits

TENSORS: dict[str, Tensor] = {
    **{
        str(dtype): (torch.arange(12).view(3, 4) % 2).to(dtype)
        for dtype in (
            *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
            *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
            *(torch.complex64, torch.complex128),
        )
    },
    "0-dim": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "one byte": torch.tensor([True]),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "channels last": torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
    "every second": torch.arange(9)[1::2],
    "expanded": torch.arange(3.0).expand(2, 3),
    "conjugate": torch.tensor([1 + 2j, 3 - 1j]).conj(),
    "one element of two": torch.arange(2.0)[1::2].expand(1, 1),
    "negative": torch.tensor([1 + 2j]).conj().imag,
    "NaN with a payload": torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32),
    "-0.0": torch.tensor([-0.0]),
    "requires grad": torch.ones(2, requires_grad=True),
}


@pytest.fixture(autouse=True)
def copies() -> Iterator[list[int]]:
    fake_device.copies.clear()
    yield fake_device.copies


def in_order(tensors: list[Tensor], **words: Any) -> list[Tensor]:
    return [copy for _, copy in sorted(host_copies(tensors, **words), key=lambda pair: pair[0])]


@pytest.mark.parametrize("name", TENSORS)
def test_a_packed_tensor_has_the_bits_dtype_and_shape_of_its_tensor(name: str) -> None:
    tensor = TENSORS[name]
    (found,) = unpack(pack([tensor]), [tensor])
    assert same_bits(found, tensor) and found.is_contiguous()


@pytest.mark.parametrize("order", [1, -1])
def test_tensors_of_every_kind_are_copied_at_once(order: int, copies: list[int]) -> None:
    tensors = list(TENSORS.values())[::order]
    found = in_order([on_device(tensor) for tensor in tensors])
    assert all(same_bits(copy, tensor) for copy, tensor in zip(found, tensors, strict=True))
    assert copies == [sum(tensor.numel() * tensor.element_size() for tensor in tensors)]


def test_a_buffer_is_bounded_and_a_larger_tensor_is_copied_alone(copies: list[int]) -> None:
    tensors = [torch.full((size,), size, dtype=torch.uint8) for size in (6, 4, 50, 1, 9)]
    found = in_order([on_device(tensor) for tensor in tensors], buffer_bytes=10)
    assert copies == [10, 50, 10] and all(map(torch.equal, found, tensors))


def test_views_of_one_memory_are_copied_each(copies: list[int]) -> None:
    memory = torch.arange(6.0)
    found = in_order([on_device(memory[:4]), on_device(memory[2:])])
    assert torch.equal(found[0], memory[:4]) and torch.equal(found[1], memory[2:]) and copies == [32]


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_tensors_that_cannot_be_packed_are_given_as_they_are() -> None:
    dense = torch.eye(2)
    quantized = torch.quantize_per_tensor(dense, 0.1, 0, torch.quint8)
    others = [dense, dense.to_sparse(), dense.to("meta"), quantized]
    assert [id(copy) for copy in in_order(others)] == [id(tensor) for tensor in others]


def test_without_memory_for_a_buffer_the_tensors_are_copied_one_by_one(
    copies: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> Tensor:
        raise torch.cuda.OutOfMemoryError("out of memory")

    tensors = [torch.arange(3.0), torch.tensor([[True, False]])]
    monkeypatch.setattr(torch, "cat", full)
    found = in_order([on_device(tensor) for tensor in tensors])
    assert copies == [12, 2] and all(map(same_bits, found, tensors))


def test_a_nested_state_is_copied_to_the_host_at_once(copies: list[int]) -> None:
    layer = nn.Linear(2, 2)
    optimizer = torch.optim.Adam(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = {"model": dict(layer.state_dict()), "optimizer": optimizer.state_dict(), "epoch": 3}
    found = to_host(tree_map(lambda leaf: on_device(leaf) if torch.is_tensor(leaf) else leaf, state))
    assert len(copies) == 1 and found["epoch"] == 3
    assert str(found) == str(state) and list(found["optimizer"]["state"]) == [0, 1]
    first = found["model"]["weight"]
    assert first.untyped_storage().nbytes() == first.nbytes, "a file of it would hold the whole buffer"


@pytest.mark.parametrize("copy", [True, False])
def test_a_tensor_on_the_cpu_is_cloned_on_request_only(copy: bool) -> None:
    weight = nn.Parameter(torch.ones(2))
    (found,) = to_host([weight], copy=copy)
    assert (found.data_ptr() != weight.data_ptr()) is copy and not found.requires_grad
