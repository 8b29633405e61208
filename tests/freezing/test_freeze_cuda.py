"""The contract on a GPU: cuDNN, float16 with a scaler, fused optimizers, moves to and fro."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from freeze_toys import Detector, points
from torch import nn
from torch.nn.utils import parametrizations
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from pcdet_freeze import CertificateError, freeze, frozen, unfreeze
from pcdet_freeze.freezing import copying_frozen
from pcdet_freeze.utils.step_hooks import FirstStep

DEVICE = "cuda"
LIST = ["vfe", "backbone_2d.blocks"]
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def detector() -> Detector:
    return Detector().to(DEVICE)


def batch(seed: int = 0, width: int = 4) -> torch.Tensor:
    return points(width=width, seed=seed).to(DEVICE)


def step(model: nn.Module, optimizer: Any = None, seed: int = 0, set_to_none: bool = True) -> None:
    """One iteration as OpenPCDet writes it, on the GPU."""
    model.train()
    if optimizer is not None:
        optimizer.zero_grad(set_to_none=set_to_none)
    model(batch(seed)).square().sum().backward()
    if optimizer is not None:
        optimizer.step()


LAYERS: list[tuple[Callable[[], nn.Module], tuple[int, ...]]] = [
    (lambda: nn.BatchNorm1d(4), (6, 4)),
    (lambda: nn.BatchNorm2d(4, affine=False), (2, 4, 3, 3)),
    (lambda: nn.BatchNorm3d(4, momentum=None), (2, 4, 3, 3, 3)),
    (lambda: nn.SyncBatchNorm(4), (6, 4)),
    (lambda: nn.Dropout(0.5), (6, 4)),
    (lambda: nn.RReLU(), (6, 4)),
    (lambda: nn.TransformerEncoderLayer(4, 2, 8, 0.5, batch_first=True), (2, 5, 4)),
    (lambda: parametrizations.spectral_norm(nn.Linear(4, 4)), (6, 4)),
]


@pytest.mark.parametrize(("make", "shape"), LAYERS)
def test_h1_h2_h3_on_cuda_two_training_forwards_agree_and_change_nothing(make: Any, shape: Any) -> None:
    model = nn.Sequential(nn.Sequential(make()), nn.Identity()).to(DEVICE)
    handle, x = freeze(model, ["0"]), torch.randn(*shape).to(DEVICE)
    first, second = model.train()(x), model.train()(x)
    assert torch.equal(first, second)
    handle.verify()


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_h2_h9_on_cuda_gradients_flow_through_a_frozen_rnn_whose_dropout_is_off(kind: Any) -> None:
    model = nn.ModuleDict({"live": nn.Linear(4, 4), "rnn": kind(4, 4, num_layers=2, dropout=0.5)}).to(DEVICE)
    handle, x = freeze(model, ["rnn"]), torch.randn(5, 3, 4).to(DEVICE)
    model.train()
    outputs = [model["rnn"](model["live"](x))[0] for _ in range(2)]
    assert torch.equal(*outputs)
    outputs[0].sum().backward()  # in eval mode cuDNN would refuse
    assert model["live"].weight.grad.abs().sum() > 0
    handle.verify()
    handle.release()
    assert model["rnn"].dropout == 0.5


UNDOING: list[Callable[[Detector], Any]] = [
    lambda m: m.vfe[1].train(),
    lambda m: setattr(m.vfe[1], "training", True),
    lambda m: (m.eval(), m.train()),
    lambda m: m.requires_grad_(True),
    lambda m: setattr(m.vfe, "1", nn.SyncBatchNorm.convert_sync_batchnorm(m.vfe[1])),
    lambda m: m.load_state_dict(copy.deepcopy(m.state_dict())),
    lambda m: m.cpu().to(DEVICE),
]


@pytest.mark.parametrize("undo", UNDOING)
def test_h4_h5_on_cuda_nothing_undoes_the_freeze(undo: Callable[[Detector], Any]) -> None:
    model = detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    handle = freeze(model, LIST, optimizer)
    for seed in range(3):
        undo(model)
        step(model, optimizer, seed)
    handle.verify()
    assert all(not p.requires_grad and p.grad is None for p in handle.parameters())


def test_h5_on_cuda_a_copy_of_a_frozen_model_is_frozen() -> None:
    model = detector()
    handle = freeze(model, LIST)
    twin = copy.deepcopy(model)
    step(twin, torch.optim.SGD(twin.parameters(), lr=0.1))
    handle.verify(twin)
    unfreeze(twin)
    assert all(p.requires_grad for p in twin.parameters()) and twin.vfe[1].training


def test_h5_on_cuda_an_average_copies_what_is_frozen() -> None:
    model = detector()
    handle = freeze(model, LIST)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    how = copying_frozen(model, get_ema_multi_avg_fn(0.9))
    ema = AveragedModel(model, multi_avg_fn=how, use_buffers=True)
    for seed in range(4):
        step(model, optimizer, seed)
        ema.update_parameters(model)
    handle.verify(ema)


def test_h5_h7_on_cuda_steps_that_the_scaler_skips_and_takes_leave_frozen_state_alone() -> None:
    model = detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    scaler = torch.amp.GradScaler(DEVICE, init_scale=2.0**4)
    handle = freeze(model, LIST, optimizer)
    live = model.dense_head.weight.detach().clone()
    for seed, factor in enumerate([1.0, float("inf"), 1.0]):
        model.train()
        optimizer.zero_grad()
        with torch.autocast(DEVICE, dtype=torch.float16):
            loss = model(batch(seed)).float().square().mean()
        scaler.scale(loss * factor).backward()
        scaler.step(optimizer)
        scaler.update()
    handle.verify()
    assert scaler.get_scale() < 2.0**4 and not torch.equal(model.dense_head.weight, live)


def test_p1_on_cuda_the_first_step_of_a_fused_optimizer_is_one_that_the_scaler_does_not_skip() -> None:
    model = detector()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)
    scaler, first = torch.amp.GradScaler(DEVICE, init_scale=2.0**4), FirstStep()
    freeze(model, LIST, optimizer)
    first.wait_for(optimizer)
    seen = []
    for factor in (float("inf"), 1.0, 1.0):
        optimizer.zero_grad()
        scaler.scale(model.train()(batch()).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        seen.append(first.has_come())
    assert seen == [False, True, False]


@pytest.mark.parametrize("reentrant", [False, True])
def test_h5_h9_on_cuda_gradient_checkpointing_over_a_frozen_block(reentrant: bool) -> None:
    model = detector()
    handle = freeze(model, ["backbone_2d.blocks"])
    model.train()
    out = checkpoint(model.backbone_2d.blocks[0], model.vfe(batch()), use_reentrant=reentrant)
    out.sum().backward()
    assert model.vfe[0].weight.grad is not None
    handle.verify()


OPTIMIZERS: list[Callable[[Any], torch.optim.Optimizer]] = [
    lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.1, amsgrad=True),
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, fused=True),
    lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5, foreach=True),
]


@pytest.mark.parametrize("make", OPTIMIZERS)
@pytest.mark.parametrize("given", [False, True])
def test_h7_on_cuda_freezing_in_the_middle_of_a_run_stops_every_movement(make: Any, given: bool) -> None:
    model = detector()
    optimizer = make(model.parameters())
    for seed in range(3):
        step(model, optimizer, seed)
    handle = freeze(model, LIST, optimizer if given else None)
    for seed in range(3):
        step(model, optimizer, seed, set_to_none=False)
    handle.verify()


def test_h8_on_cuda_a_stretch_ends_where_it_began() -> None:
    model = detector()
    with frozen(model, LIST):
        step(model)
        assert model.vfe[0].weight.grad is None
    step(model)
    assert model.vfe[0].weight.grad is not None and model.vfe[1].num_batches_tracked == 1


def test_p1_on_cuda_the_certificate_is_that_of_the_same_bits_on_the_cpu() -> None:
    model = detector()
    handle = freeze(model, LIST)
    on_gpu = handle.certificate()
    model.cpu()
    assert handle.certificate() == on_gpu
    model.to(DEVICE).vfe[1].running_mean.data[0] += 1
    with pytest.raises(CertificateError, match=r"vfe\.1\.running_mean changed"):
        handle.verify()
