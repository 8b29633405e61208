"""Sparse convolutions equal dense ones on active sites, in all modes, after copying, and on empty inputs."""

from __future__ import annotations

import copy
import io
import logging
import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pcdet_freeze.ops import sparse

SHAPE = (5, 6, 7)
TRIPLE = (3, 3, 3)


def volume(sites: int = 30, channels: int = 4, samples: int = 2, seed: int = 0) -> Any:
    """A sparse tensor with the given number of active sites per sample."""
    random = torch.Generator().manual_seed(seed)
    rows = []
    for sample in range(samples):
        flat = torch.randperm(SHAPE[0] * SHAPE[1] * SHAPE[2], generator=random)[:sites]
        place = [flat // (SHAPE[1] * SHAPE[2]), flat // SHAPE[2] % SHAPE[1], flat % SHAPE[2]]
        rows.append(torch.stack([torch.full_like(flat, sample), *place], dim=1))
    coords = torch.cat(rows)
    return sparse.sparse_tensor(torch.randn(len(coords), channels, generator=random), coords, SHAPE, samples)


def layers() -> nn.Module:
    """A submanifold convolution with bias and a strided one, with norms, as in a backbone."""
    torch.manual_seed(0)
    return sparse.SparseSequential(
        sparse.submanifold_conv(4, 6, 3, "a", bias=True),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        sparse.strided_conv(6, 8, TRIPLE, (2, 2, 2), (1, 1, 1), "b"),
        nn.BatchNorm1d(8),
    )


def plain_weight(conv: Any) -> torch.Tensor:
    """(out, in, z, y, x), the layout of torch's dense convolution."""
    return conv.weight.permute(0, 4, 1, 2, 3)


@pytest.mark.parametrize("training", [True, False])
def test_a_submanifold_convolution_is_the_dense_one_on_its_active_sites(training: bool) -> None:
    conv, x = sparse.submanifold_conv(4, 6, 3, "a", bias=True).train(training), volume()
    found = conv(x)
    expected = F.conv3d(sparse.dense(x), plain_weight(conv), conv.bias, padding=1)
    where = x.indices.long().unbind(1)
    assert found.indices.equal(x.indices)
    torch.testing.assert_close(found.features, expected.permute(0, 2, 3, 4, 1)[where], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("stride", "padding"), [((2, 2, 2), (0, 1, 1)), ((2, 1, 1), (1, 0, 1))])
def test_a_strided_convolution_is_the_dense_one(
    training: bool, stride: sparse.Triple, padding: sparse.Triple
) -> None:
    conv, x = sparse.strided_conv(4, 6, TRIPLE, stride, padding, "b").train(training), volume()
    found = conv(x)
    expected = F.conv3d(sparse.dense(x), plain_weight(conv), stride=stride, padding=padding)
    assert tuple(found.spatial_shape) == sparse.conv_output_shape(SHAPE, TRIPLE, stride, padding)
    torch.testing.assert_close(sparse.dense(found), expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_those_of_the_dense_convolution() -> None:
    conv, x = sparse.strided_conv(4, 6, TRIPLE, (2, 2, 2), (1, 1, 1), "b"), volume()
    x.features.requires_grad_()
    weight, given = plain_weight(conv).detach().clone().requires_grad_(), sparse.dense(x)
    sparse.dense(conv(x)).square().sum().backward()
    found = x.features.grad.clone()
    x.features.grad = None
    F.conv3d(given, weight, stride=2, padding=1).square().sum().backward()
    torch.testing.assert_close(conv.weight.grad.permute(0, 4, 1, 2, 3), weight.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found, x.features.grad, rtol=1e-4, atol=1e-4)


def test_indices_that_are_not_contiguous_give_the_same_numbers() -> None:
    net, x = layers().eval(), volume()
    columns = x.indices.t().contiguous().t()
    assert not columns.is_contiguous()
    again = net(sparse.sparse_tensor(x.features, columns, SHAPE, 2))
    assert sparse.dense(again).equal(sparse.dense(net(volume())))


def test_h9_gradients_flow_through_a_layer_in_eval_mode() -> None:
    net, x = layers().eval(), volume()
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    x.features.requires_grad_()
    net(x).features.sum().backward()
    assert x.features.grad.abs().sum() > 0


def test_layers_with_and_without_a_graph_can_share_their_sites() -> None:
    first, second = (sparse.submanifold_conv(4, 4, 3, "a") for _ in range(2))
    with torch.no_grad():
        x = first(volume())
    second(x).features.sum().backward()
    assert second.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("training", [True, False])
def test_an_input_without_active_sites_gives_an_empty_output_and_zero_gradients(training: bool) -> None:
    net = layers().train(training)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    out = net(volume(sites=0))
    out.features.sum().backward()
    assert out.features.shape == (0, 8) and tuple(out.spatial_shape) == (3, 3, 4)
    assert all(p.grad is not None and not p.grad.any() for p in net.parameters())
    assert all(value.equal(before[key]) for key, value in net.state_dict().items() if "running" in key)


def test_a_single_active_site_is_normalised_with_the_running_statistics() -> None:
    net = layers().train()
    still = layers().eval()
    one = sparse.sparse_tensor(torch.ones(1, 4), torch.tensor([[0, 0, 0, 0]]), SHAPE, 1)
    torch.testing.assert_close(net[:3](one).features, still[:3](one).features)


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
def test_a_copy_computes_the_same(how: str) -> None:
    net = layers().eval()
    net(volume())
    if how == "deepcopy":
        twin = copy.deepcopy(net)
    elif how == "pickle":
        twin = pickle.loads(pickle.dumps(net))
    else:
        file = io.BytesIO()
        torch.save(net, file)
        twin = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    assert sparse.dense(twin(volume())).equal(sparse.dense(net(volume())))


def test_the_state_has_the_layout_of_spconv_2() -> None:
    assert list(layers().state_dict()["0.weight"].shape) == [6, 3, 3, 3, 4]
    assert list(layers().state_dict())[:2] == ["0.weight", "0.bias"]


def test_what_torch_advises_the_authors_of_spconv_is_not_logged() -> None:
    sparse._spconv()
    logger = logging.getLogger("torch.fx._symbolic_trace")

    def is_logged(text: str) -> bool:
        return bool(logger.filter(logging.makeLogRecord({"msg": text})))

    assert not is_logged("is_fx_tracing will return true for both") and is_logged("another warning")
