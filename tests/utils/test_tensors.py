"""Tensors in nested values: copied, listed, compared."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass
from math import inf, nan
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from waits import PackageWaits

from pcdet_freeze.freezing.checks.rerun_call import alias
from pcdet_freeze.utils.tensors import (
    clone_detached,
    error_sums,
    relative_error,
    relative_errors,
    same_bits,
    storage_of,
    tensors_of,
    tensors_with_path,
)

Pair = namedtuple("Pair", "left right")


def test_clone_detached_copies_containers_and_tensors_and_keeps_other_items() -> None:
    other = object()
    value = {"a": [torch.ones(2, requires_grad=True)], "b": Pair(torch.zeros(1), other)}
    made = clone_detached(value)
    assert made is not value and made["a"] is not value["a"]
    assert not made["a"][0].requires_grad and made["a"][0].data_ptr() != value["a"][0].data_ptr()
    assert isinstance(made["b"], Pair) and made["b"].right is other


def test_clone_detached_keeps_subclasses_of_dict() -> None:
    assert type(clone_detached(OrderedDict(a=torch.ones(1)))) is OrderedDict


def test_clone_detached_moves_to_a_device() -> None:
    assert clone_detached([torch.ones(1)], "meta")[0].device.type == "meta"


def test_tensors_come_in_order_with_their_paths() -> None:
    sparse = SimpleNamespace(features=torch.ones(2, 3), indices=torch.zeros(2, 4))
    value = {"a": [torch.ones(1), "text"], 2: (sparse,)}
    assert [path for path, _ in tensors_with_path(value)] == ["a[0]", "2[0].features", "2[0].indices"]
    assert [path for path, _ in tensors_with_path(torch.ones(1), "x")] == ["x"]


@dataclass(frozen=True)
class Output:
    """What an encoder of another library returns."""

    features: torch.Tensor
    hidden: tuple[torch.Tensor, ...]


class OutputDict(OrderedDict[str, Any]):
    """The same as a dict that refuses ``update``, as those of transformers do."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        raise TypeError("use __setitem__")


def test_fields_of_a_dataclass_are_listed_and_copied() -> None:
    value = Output(torch.ones(1, requires_grad=True), (torch.zeros(1),))
    assert [path for path, _ in tensors_with_path({"a": value})] == ["a.features", "a.hidden[0]"]
    made = clone_detached(value)
    assert type(made) is Output and not made.features.requires_grad and value.features.requires_grad
    assert made.hidden[0].data_ptr() != value.hidden[0].data_ptr()


def test_a_dict_that_refuses_update_is_copied() -> None:
    value = OutputDict()
    value["a"] = torch.ones(1, requires_grad=True)
    assert not clone_detached(value)["a"].requires_grad and type(clone_detached(value)) is OutputDict


def test_tensors_of_a_sparse_tensor_are_its_features_alone() -> None:
    sparse = SimpleNamespace(features=torch.ones(2, 3), indices=torch.zeros(2, 4))
    assert [tensor is sparse.features for tensor in tensors_of([sparse])] == [True]


def test_views_share_a_storage_and_sparse_layouts_have_none() -> None:
    whole = torch.ones(4)
    assert storage_of(whole[2:]).data_ptr() == storage_of(whole).data_ptr()
    assert storage_of(torch.eye(2).to_sparse()) is None


@pytest.mark.parametrize(
    ("a", "b", "equal"),
    [
        (torch.tensor([nan]), torch.tensor([nan]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), False),
        (torch.ones(2), torch.ones(2, 1), False),
        (torch.eye(3)[:, 0], torch.eye(3)[0], True),
        (torch.tensor([1 + 2j]).conj(), torch.tensor([1 - 2j]), True),
    ],
)
def test_same_bits(a: torch.Tensor, b: torch.Tensor, equal: bool) -> None:
    assert same_bits(a, b) is equal


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        ([3.0, 4.0], [3.0, 4.0], 0.0),
        ([3.0, 4.0], [3.0, 4.5], 0.1),
        ([0.0, 0.0], [0.0, 0.0], 0.0),
        ([0.0], [-0.0], 0.0),
        ([0.0], [1e-30], inf),
        ([nan, 3.0, 4.0], [nan, 3.0, 4.5], 0.1),
        ([inf, 3.0, 4.0], [inf, 3.0, 4.5], 0.1),
        ([1.0], [nan], inf),
        ([inf], [-inf], inf),
        ([1.0], [1.0, 1.0], inf),
        ([], [], 0.0),
    ],
)
def test_relative_error_is_l2_and_infinite_where_only_one_is_finite(a: list, b: list, error: float) -> None:
    assert relative_error(torch.tensor(a), torch.tensor(b)) == pytest.approx(error)


def test_relative_error_is_computed_in_float64() -> None:
    a = torch.full((1000,), 1e30)
    assert relative_error(a, a * 2) == pytest.approx(1)  # its square is infinite in float32


def test_relative_error_of_complex_and_half_tensors() -> None:
    assert relative_error(torch.tensor([3 + 4j]), torch.tensor([3 + 4.5j])) == pytest.approx(0.1)
    assert relative_error(torch.tensor([1.0]).half(), torch.tensor([1.5])) == pytest.approx(0.5)


def test_relative_errors_of_many_tensors_are_read_in_one_copy() -> None:
    pairs = [(torch.full((5,), 3.0), torch.full((5,), 3.0 + 0.3 * number)) for number in range(40)]
    with PackageWaits() as waits:
        errors = relative_errors([error_sums(a, b) for a, b in pairs])
    assert errors == pytest.approx([0.1 * number for number in range(40)])
    assert [line.split()[-1] for line in waits.lines.elements()] == ["tolist"]


def test_relative_error_of_a_large_tensor_does_not_depend_on_its_strides() -> None:
    a = torch.randn(2, 3, 500, 700)
    near = a * (1 + 1e-6 * torch.randn_like(a))
    error = relative_error(a, near)
    assert error == relative_error(a, near.contiguous(memory_format=torch.channels_last))
    assert error == pytest.approx(float((near.double() - a).norm() / a.double().norm()), rel=1e-9)


def test_an_exact_comparison_takes_any_difference_for_an_infinite_error() -> None:
    a, b = torch.tensor([2**60, 3]), torch.tensor([2**60 + 1, 3])  # equal in float64
    assert relative_errors([error_sums(a, b), error_sums(a, b, exact=True)]) == [0.0, inf]
    assert relative_errors([error_sums(a, a.clone(), exact=True)]) == [0.0]


@dataclass
class Node:
    feature: torch.Tensor
    parent: Any = None


def test_an_object_that_holds_itself_is_listed_and_copied_once() -> None:
    node = Node(torch.ones(2))
    node.parent = {"children": [node]}
    assert [path for path, _ in tensors_with_path(node)] == ["feature"]
    copied = clone_detached(node)
    assert copied is not node and copied.parent["children"][0] is copied
    assert copied.feature is not node.feature and torch.equal(copied.feature, node.feature)
    aliased = alias(node)
    assert aliased.parent["children"][0] is aliased and aliased.feature is not node.feature
