"""H5, H6: what the freeze survives, and that the frozen object stays the same object."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable

import pytest
import torch
from freeze_toys import Detector, points, same_state, state_bits, train_step
from grad_scaler import cpu_grad_scaler
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from pcdet_freeze import CertificateError, FreezeError, freeze, is_frozen, unfreeze
from pcdet_freeze.freezing import copying_frozen

LIST = ["vfe", "backbone_2d.blocks"]


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES: list[Callable[[nn.Module], nn.Module]] = [copy.deepcopy, copy.copy, saved_and_loaded]


@pytest.mark.parametrize("make_copy", COPIES)
def test_h5_a_copy_of_a_frozen_model_is_frozen(make_copy) -> None:
    model = Detector()
    handle = freeze(model, LIST)
    twin = make_copy(model)
    train_step(twin)
    assert is_frozen(twin.vfe) and not twin.vfe[1].training and twin.backbone_2d.deblocks[0][1].training
    assert all(p.grad is None for p in twin.vfe.parameters())
    handle.verify(twin)


@pytest.mark.parametrize("make_copy", COPIES)
def test_h8_a_copy_can_be_unfrozen_exactly(make_copy) -> None:
    model = Detector()
    model.vfe[0].weight.requires_grad_(False)
    freeze(model, LIST)
    twin = make_copy(model)
    unfreeze(twin)
    assert type(twin.vfe[1]) is nn.BatchNorm1d and twin.vfe[1].training
    assert [n for n, p in twin.named_parameters() if not p.requires_grad] == ["vfe.0.weight"]
    assert not twin._forward_pre_hooks and is_frozen(model.vfe) is (make_copy is not copy.copy)


def test_h5_a_copy_of_a_part_stays_frozen_and_can_be_unfrozen() -> None:
    model = Detector()
    freeze(model, LIST)
    part = copy.deepcopy(model.vfe)
    part.train()
    assert not part[1].training
    unfreeze(part)
    assert part[1].training and part[0].weight.requires_grad and is_frozen(model.vfe)


@pytest.mark.parametrize("entries", [LIST, ["vfe.1", "backbone_2d.blocks.0.1"]])
def test_h5_sync_batch_norm_conversion_before_or_after_does_not_undo_it(entries: list[str]) -> None:
    before = nn.SyncBatchNorm.convert_sync_batchnorm(Detector())
    freeze(before, entries)
    after = Detector()
    handle = freeze(after, entries)
    bits = {name: digest for name, digest in handle.certificate().digests.items()}
    after = nn.SyncBatchNorm.convert_sync_batchnorm(after)
    for model in (before, after):
        model.train()
        model.backbone_2d.requires_grad_(False).eval()  # a live SyncBatchNorm does not run on the CPU
        model(points())
        model.train()
        assert isinstance(model.vfe[1], nn.SyncBatchNorm) and not model.vfe[1].training
        assert not model.vfe[1].weight.requires_grad
    assert handle.certificate().digests == bits


def test_h8_after_a_conversion_the_new_layer_gets_back_what_the_old_one_had() -> None:
    model = Detector()
    model.vfe[1].bias.requires_grad_(False)
    freeze(model, ["vfe"])
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model.eval()
    model(points())
    unfreeze(model)
    model.train()
    assert type(model.vfe[1]) is nn.SyncBatchNorm and model.vfe[1].training
    assert model.vfe[1].weight.requires_grad and not model.vfe[1].bias.requires_grad


def test_h5_a_replaced_child_is_frozen_before_the_next_forward() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    model.vfe[1] = nn.BatchNorm1d(8)
    model.backbone_2d.blocks[1] = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
    train_step(model)
    assert is_frozen(model.vfe) and is_frozen(model.backbone_2d.blocks)
    assert model.vfe[1].num_batches_tracked == 0 and not model.backbone_2d.blocks[1][2].training
    with pytest.raises(CertificateError, match=r"backbone_2d\.blocks\.1\.0\.weight changed"):
        handle.verify()


def test_h5_a_parameter_that_is_replaced_or_added_is_frozen_too() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    model.vfe[0].weight = nn.Parameter(torch.zeros(8, 4))
    model.vfe[0].extra = nn.Parameter(torch.zeros(1))
    model(points())
    assert not model.vfe[0].weight.requires_grad and not model.vfe[0].extra.requires_grad
    handle.release()
    assert model.vfe[0].weight.requires_grad and model.vfe[0].extra.requires_grad


def test_h5_loading_weights_after_freezing_keeps_it_frozen() -> None:
    model, other = Detector(), Detector()
    handle = freeze(model, LIST)
    for assign in (False, True):
        model.load_state_dict(copy.deepcopy(other.state_dict()), assign=assign)
        handle.renew()
        train_step(model)
        assert is_frozen(model.vfe) and not model.vfe[0].weight.requires_grad
        handle.verify()


def test_h5_gradient_checkpointing_over_a_frozen_block() -> None:
    model = Detector()
    handle = freeze(model, ["backbone_2d.blocks"])
    model.train()
    out = checkpoint(model.backbone_2d.blocks[0], model.vfe(points()), use_reentrant=False)
    out.sum().backward()
    assert model.vfe[0].weight.grad is not None
    handle.verify()


def test_h5_amp_with_a_grad_scaler() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], weight_decay=0.1)
    scaler = cpu_grad_scaler()
    for seed in range(3):
        model.train()
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(points(seed=seed)).float().square().sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    handle.verify()


AVERAGES = [
    {"multi_avg_fn": get_ema_multi_avg_fn(0.9), "use_buffers": True},
    {"avg_fn": get_ema_avg_fn(0.999)},
    {},
]


@pytest.mark.parametrize("how", AVERAGES)
def test_h5_a_foreign_average_is_reported_and_restored(how: dict) -> None:
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    handle = freeze(model, LIST, optimizer)
    ema = AveragedModel(model, **how)
    for seed in range(5):
        train_step(model, optimizer, seed)
        ema.update_parameters(model)
    ema.module.vfe[0].weight.data += 1
    with pytest.raises(CertificateError, match=r"vfe\.0\.weight changed"):
        handle.verify(ema)
    handle.sync(ema)
    handle.verify(ema)


@pytest.mark.parametrize("inner", [None, get_ema_multi_avg_fn(0.9)])
def test_h5_copying_frozen_averages_the_rest_and_copies_integers(inner) -> None:
    model = Detector()
    model.vfe[0].weight.data[0] = torch.tensor([float("nan"), -0.0, 0.1, 1e-40])
    optimizer = torch.optim.SGD(model.backbone_2d.deblocks.parameters(), lr=0.1)
    handle = freeze(model, LIST)
    ema = AveragedModel(model, multi_avg_fn=copying_frozen(model, inner), use_buffers=True)
    for seed in range(4):
        model.train()
        optimizer.zero_grad()
        model.backbone_2d.deblocks[0](points(6, 8, seed)).square().sum().backward()
        optimizer.step()
        ema.update_parameters(model)
    handle.verify(ema)
    live, averaged = model.backbone_2d.deblocks[0], ema.module.backbone_2d.deblocks[0]
    assert averaged[1].num_batches_tracked == live[1].num_batches_tracked == 4
    assert not torch.equal(averaged[0].weight, live[0].weight)


def test_h5_sync_refuses_a_copy_of_another_shape_and_changes_nothing() -> None:
    model, other = Detector(), Detector()
    other.vfe[0] = nn.Linear(4, 9, bias=False)
    handle, bits = freeze(model, LIST), state_bits(other)
    with pytest.raises(FreezeError, match=r"vfe\.0\.weight"):
        handle.sync(other)
    assert same_state(other, bits)


def test_h6_identity_isinstance_parameters_and_state_keys_are_unchanged() -> None:
    model = Detector()
    modules, parameters = list(model.modules()), list(model.parameters())
    keys, text, types = list(model.state_dict()), repr(model), [type(m) for m in modules]
    handle = freeze(model, LIST)
    assert all(a is b for a, b in zip(modules, model.modules(), strict=True))
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    assert list(model.state_dict()) == keys and repr(model) == text
    assert all(isinstance(m, t) for m, t in zip(modules, types, strict=True))
    handle.release()
    assert [type(m) for m in model.modules()] == types


def test_h6_checkpoints_go_both_ways() -> None:
    frozen_model, plain = Detector(), Detector()
    freeze(frozen_model, LIST)
    plain.load_state_dict(frozen_model.state_dict())
    frozen_model.load_state_dict(plain.state_dict())
    assert same_state(plain, state_bits(frozen_model))


class Registered(nn.BatchNorm1d):
    """A layer whose subclasses are registered, as some repositories do."""

    known: list[str] = []  # noqa: RUF012

    def __init_subclass__(cls, *, key: str, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        cls.known.append(key)


def test_h6_a_class_that_registers_its_subclasses_does_not_see_the_locked_one() -> None:
    model = nn.Sequential(nn.Sequential(Registered(4)))
    freeze(model, ["0"])
    assert Registered.known == [] and not model.train()[0][0].training
    assert isinstance(copy.deepcopy(model)[0][0], Registered)


def test_h6_the_locked_class_has_the_name_of_its_base() -> None:
    model = Detector()
    freeze(model, LIST)
    cls = type(model.vfe[1])
    assert (cls.__name__, cls.__qualname__, cls.__module__) == (
        "BatchNorm1d", "BatchNorm1d", "torch.nn.modules.batchnorm")  # fmt: skip


def test_a_scripted_part_is_an_error() -> None:
    model = nn.Module()
    model.part = torch.jit.script(nn.Linear(2, 2))
    with pytest.raises(FreezeError, match="TorchScript"):
        freeze(model, ["part"])


class Slotted(nn.BatchNorm1d):
    """A layer with a memory layout of its own."""

    __slots__ = ("note",)


def test_h6_a_class_with_slots_is_locked_and_released() -> None:
    model = nn.Sequential(nn.Sequential(Slotted(4)))
    handle = freeze(model, ["0"])
    assert not model.train()[0][0].training
    handle.release()
    assert type(model[0][0]) is Slotted


def test_h5_tensors_that_a_functional_call_brings_are_not_touched() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    weights = {name: (p.detach().requires_grad_() * 1.5) for name, p in model.named_parameters()}
    torch.func.functional_call(model.train(), weights, (points(),)).sum().backward()
    assert all(w.requires_grad for w in weights.values())
    handle.verify()


def test_h5_a_traced_model_has_the_locked_layers_in_eval_mode() -> None:
    model = Detector()
    freeze(model, ["vfe", "backbone_2d"])
    traced = torch.jit.trace(model.train(), points())
    assert torch.equal(traced(points(seed=3)), model(points(seed=3)))


def test_h5_a_lazy_child_put_into_a_frozen_module_is_an_error_at_the_next_forward() -> None:
    model = Detector()
    freeze(model, ["vfe"])
    model.vfe[1] = nn.LazyBatchNorm1d()
    with pytest.raises(FreezeError, match=r"vfe\.1 \(LazyBatchNorm1d\) is lazy"):
        model.train()(points())


def test_a_trainable_scripted_part_is_allowed() -> None:
    model = Detector()
    model.dense_head = torch.jit.script(model.dense_head)
    freeze(model, LIST).verify()
