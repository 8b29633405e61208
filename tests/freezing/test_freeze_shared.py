"""N7: aliases resolve, and what a live path shares with a frozen one is an error that names both."""

from __future__ import annotations

import pytest
import torch
from freeze_toys import Detector, block
from torch import nn

from pcdet_freeze import FreezeError, FreezePlan, freeze, is_frozen


def two_parts(**shared: nn.Module) -> nn.Module:
    model = nn.Module()
    model.a, model.b = block(), block()
    return model


def shared_bn() -> nn.Module:
    model = two_parts()
    model.b[1] = model.a[1]
    return model


def tied_weight() -> nn.Module:
    model = two_parts()
    model.b[0].weight = model.a[0].weight
    return model


def shared_memory() -> nn.Module:
    model = two_parts()
    model.b[0].weight = nn.Parameter(model.a[0].weight.data[:])
    return model


def shared_buffer() -> nn.Module:
    model = two_parts()
    model.b[1].running_mean = model.a[1].running_mean
    return model


SHARED = [
    (shared_bn, "a.1", "b.1"),
    (tied_weight, "a.0.weight", "b.0.weight"),
    (shared_memory, "a.0.weight", "b.0.weight"),
    (shared_buffer, "a.1.running_mean", "b.1.running_mean"),
]


@pytest.mark.parametrize(("build", "frozen", "live"), SHARED)
def test_n7_what_a_trainable_path_reaches_too_is_an_error_that_names_both(
    build, frozen: str, live: str
) -> None:
    model = build()
    with pytest.raises(FreezeError) as caught:
        freeze(model, ["a"])
    message = str(caught.value)
    assert frozen in message and live in message and "SHARED: freeze" in message
    assert all(p.requires_grad for p in model.parameters()) and not is_frozen(model.a)


@pytest.mark.parametrize(("build", "frozen", "live"), SHARED)
def test_n7_naming_both_users_is_no_error(build, frozen: str, live: str) -> None:
    handle = freeze(build(), ["a", "b"])
    assert handle.names == ("a", "b")


@pytest.mark.parametrize(("build", "frozen", "live"), SHARED)
def test_n7_shared_freeze_freezes_the_trainable_user_too_and_notes_it(build, frozen: str, live: str) -> None:
    model = build()
    handle = freeze(model, FreezePlan(("a",), shared="freeze"))
    assert any(frozen in note and live in note for note in handle.notes)
    user = model.get_submodule(live if live == "b.1" else live.rpartition(".")[0])
    model.train()
    if isinstance(user, nn.BatchNorm1d):
        assert not user.training
    else:
        assert not user.weight.requires_grad
    handle.release()
    assert all(p.requires_grad for p in model.parameters()) and user.training


def test_n7_a_trainable_user_of_frozen_memory_does_not_change_it() -> None:
    model = shared_buffer()
    handle = freeze(model, FreezePlan(("a",), shared="freeze"))
    model.train()
    model.b(torch.randn(6, 8))
    handle.verify()


def test_n7_an_alias_resolves_to_its_module() -> None:
    model = Detector()
    model.encoder = model.backbone_2d
    handle = freeze(model, ["encoder.blocks"])
    assert is_frozen(model.backbone_2d.blocks) and handle.names == ("backbone_2d.blocks",)


def test_n7_a_second_name_of_the_same_caller_is_no_sharing() -> None:
    model = Detector()
    model.backbone = model.backbone_2d
    model.module_list = nn.ModuleList([model.vfe, model.backbone_2d])
    handle = freeze(model, ["backbone_2d", "vfe"])
    assert is_frozen(model.backbone) and handle.certificate().digests


def test_n7_a_module_that_another_module_calls_too_is_sharing_even_if_named_itself() -> None:
    with pytest.raises(FreezeError, match=r"a\.1 .* b\.1"):
        freeze(shared_bn(), ["a.1"])


def test_n7_an_exempted_part_counts_as_trainable() -> None:
    model = two_parts()
    model.a[0].weight = nn.Parameter(torch.zeros(8, 8))
    model.a.append(nn.Linear(8, 8))
    model.a[4].weight = model.a[0].weight
    with pytest.raises(FreezeError, match=r"a\.0\.weight .* a\.4\.weight"):
        freeze(model, ["a", "!a.4"])


def test_n7_a_shared_layer_without_state_is_allowed_unless_it_would_be_locked() -> None:
    model = two_parts()
    model.b[2] = model.a[2]
    freeze(model, ["a"]).release()
    model.b[3] = model.a[3]
    with pytest.raises(FreezeError, match=r"Dropout"):
        freeze(model, ["a"])


def test_n7_disjoint_parts_of_one_storage_are_not_shared() -> None:
    model, flat = two_parts(), torch.zeros(128)
    model.a[0].weight = nn.Parameter(flat[:64].view(8, 8))
    model.b[0].weight = nn.Parameter(flat[64:].view(8, 8))
    assert freeze(model, ["a"]).names == ("a",)


def test_n7_a_tensor_that_two_frozen_modules_share_is_released_with_the_last() -> None:
    model = tied_weight()
    first = freeze(model, FreezePlan(("a",), shared="freeze"))
    second = freeze(model, FreezePlan(("b",), shared="freeze"))
    first.release()
    assert not model.b[0].weight.requires_grad and model.a[0].bias.requires_grad
    second.release()
    assert model.b[0].weight.requires_grad
