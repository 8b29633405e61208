"""H8: a release is exact, and freezes nest."""

from __future__ import annotations

import gc
import logging
import weakref

import pytest
import torch
import torch.nn.utils.prune
from freeze_toys import Detector, points, train_step
from torch import nn

from pcdet_freeze import (
    FreezeError,
    FreezePlan,
    freeze,
    frozen,
    is_frozen,
    set_bn_eval,
    set_bn_to_eval,
    unfreeze,
)

LIST = ["vfe", "backbone_2d.blocks"]


def portrait(model: nn.Module) -> list[object]:
    """All that an exact release restores."""
    modules = [(type(m), sorted(m.__dict__), m.training, len(m._forward_pre_hooks)) for m in model.modules()]
    return [*modules, *((id(p), p.requires_grad) for p in model.parameters())]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("undo", ["release", "unfreeze", "unfreeze by name", "context"])
def test_h8_everything_is_as_it_was(undo: str, mode: bool) -> None:
    model = Detector().train(mode)
    model.vfe[0].weight.requires_grad_(False)
    before = portrait(model)
    if undo == "context":
        with frozen(model, LIST):
            assert is_frozen(model.vfe)
    else:
        handle = freeze(model, LIST)
        {"release": handle.release, "unfreeze": lambda: unfreeze(model),
         "unfreeze by name": lambda: unfreeze(model, LIST)}[undo]()  # fmt: skip
    assert portrait(model) == before


@pytest.mark.parametrize("trains", [True, False])
def test_h8_a_parameter_that_a_parametrization_moved_meanwhile_comes_back_too(trains: bool) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 1))
    model[0][0].weight.requires_grad_(trains)
    handle = freeze(model, ["0"])
    nn.utils.parametrizations.spectral_norm(model[0][0])
    model(torch.ones(2, 4))  # re-applies the freeze to the new parts too
    assert not model[0][0].parametrizations.weight.original.requires_grad
    handle.release()
    assert model[0][0].parametrizations.weight.original.requires_grad is trains


MOVES = {
    "pruning": lambda layer: nn.utils.prune.l1_unstructured(layer, "weight", 0.5),
    "the older spectral_norm": nn.utils.spectral_norm,
    "pruning, removed again": lambda layer: nn.utils.prune.remove(MOVES["pruning"](layer), "weight"),
}
"""what moves ``weight`` to ``weight_orig``"""


@pytest.mark.parametrize("move", MOVES)
@pytest.mark.parametrize("trains", [True, False])
@pytest.mark.parametrize("runs", [True, False])
def test_h8_a_parameter_that_torch_has_renamed_meanwhile_comes_back_too(
    move: str, trains: bool, runs: bool
) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4)), nn.Linear(4, 1))
    model[0][0].weight.requires_grad_(trains)
    handle = freeze(model, ["0"])
    MOVES[move](model[0][0])
    if runs:
        model(torch.ones(2, 4))  # re-applies the freeze
    assert not any(parameter.requires_grad for parameter in model[0].parameters())
    handle.release()
    assert {name: p.requires_grad for name, p in model[0][0].named_parameters()} == {
        "bias": True, "weight" if "removed" in move else "weight_orig": trains
    }  # fmt: skip


def test_h8_a_released_layer_takes_its_parents_current_mode() -> None:
    model = Detector().eval()
    handle = freeze(model, LIST)
    model.train()
    handle.release()
    assert model.vfe[1].training and model.backbone_2d.blocks[0][3].training


def test_h8_unless_it_differed_from_it_before_the_freeze() -> None:
    model = Detector().train()
    model.vfe[1].eval()
    handle = freeze(model, LIST)
    model.train()
    handle.release()
    assert not model.vfe[1].training and model.backbone_2d.blocks[0][1].training


def test_h8_freezes_nest_and_the_last_owner_releases() -> None:
    model = Detector()
    before = portrait(model)
    first, second = freeze(model, ["vfe"]), freeze(model, LIST)
    first.release()
    first.release()
    assert is_frozen(model.vfe) and not model.vfe[0].weight.requires_grad
    train_step(model)
    second.verify()
    second.release()
    model.zero_grad()
    assert portrait(model) == before


def test_h8_a_with_block_inside_a_freeze_leaves_the_outer_one_as_it_was() -> None:
    model = Detector()
    outer = freeze(model, ["vfe"])
    with frozen(model, ["vfe", "dense_head"]):
        assert is_frozen(model.dense_head)
    assert is_frozen(model.vfe) and not is_frozen(model.dense_head)
    outer.verify()


def test_h8_layers_locked_first_and_frozen_later_are_released_in_either_order() -> None:
    for order in (0, 1):
        model = Detector()
        before = portrait(model)
        handles = [freeze(model, FreezePlan(("vfe",), parameters=False)), freeze(model, ["vfe"])]
        handles[order].release()
        assert model.vfe[0].weight.requires_grad is bool(order) and not model.train().vfe[1].training
        handles[1 - order].release()
        assert portrait(model) == before


def test_h8_unfreeze_of_everything_ends_every_freeze() -> None:
    model = Detector()
    before = portrait(model)
    first, _ = freeze(model, ["vfe"]), freeze(model, LIST)
    unfreeze(model)
    assert portrait(model) == before and first.names == ()
    with pytest.raises(FreezeError, match="released"):
        first.verify()


def test_h8_a_part_can_be_unfrozen_by_name() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    unfreeze(model, ["backbone_2d.blocks.2"])
    train_step(model)
    assert [is_frozen(b) for b in model.backbone_2d.blocks] == [True, True, False]
    assert model.backbone_2d.blocks[2][1].num_batches_tracked == 1
    handle.verify()
    assert not any("blocks.2" in name for name in handle.certificate().digests)


def test_h8_unfreezing_what_is_not_frozen_or_not_there_is_an_error() -> None:
    model = Detector()
    freeze(model, LIST)
    with pytest.raises(FreezeError) as caught:
        unfreeze(model, ["vfe", "dense_head", "vef"])
    assert "'dense_head' is not frozen" in str(caught.value) and "'vef' names no module" in str(caught.value)
    assert is_frozen(model.vfe)


def test_h8_a_part_that_is_unfrozen_by_itself_stays_so() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    unfreeze(model.vfe)
    train_step(model)
    assert not is_frozen(model.vfe) and model.vfe[0].weight.grad is not None
    handle.verify()
    assert handle.names == ("backbone_2d.blocks",)


def test_h8_freezes_of_a_part_end_with_the_whole() -> None:
    model = Detector()
    before = portrait(model)
    freeze(model.backbone_2d, ["blocks"])
    freeze(model, ["backbone_2d.blocks.0"])
    unfreeze(model, ["backbone_2d.blocks.1"])
    assert [is_frozen(b) for b in model.backbone_2d.blocks] == [True, False, True]
    unfreeze(model)
    assert portrait(model) == before


def test_h8_an_error_inside_the_with_block_releases_too() -> None:
    model = Detector()
    with pytest.raises(ZeroDivisionError), frozen(model, ["vfe"]):
        raise ZeroDivisionError("from the user's code")
    assert not is_frozen(model.vfe)


def test_the_original_recipe_is_a_one_off_eval_of_norm_layers() -> None:
    model = Detector()
    model.apply(set_bn_eval)
    assert not model.vfe[1].training and model.vfe[0].training and model.backbone_2d.blocks[0][3].training
    assert model.vfe[1].weight.requires_grad and model.train().vfe[1].training


def test_the_original_recipe_logs_each_layer(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        names = set_bn_to_eval(Detector(), logging.getLogger("a run"))
    assert len(names) == len(caplog.records) == 7 and "vfe.1 (BatchNorm1d)" in caplog.text


def test_the_report_is_a_table_of_modules() -> None:
    model = Detector()
    lines = freeze(model, ["vfe", "backbone_2d.blocks", "!backbone_2d.blocks.2"]).report().splitlines()
    assert lines[0].split() == ["module", "parameters", "frozen", "norm", "locked", "off", "by"]
    row = next(line.split() for line in lines if line.startswith("backbone_2d.blocks"))
    assert row == ["backbone_2d.blocks", "264", "176", "2", "2", "backbone_2d.blocks"]


def test_the_report_names_no_entry_for_what_is_no_longer_frozen() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    unfreeze(model, ["vfe"])
    by = {line.split()[0]: line.split()[5:] for line in handle.report().splitlines()}
    assert by["vfe"] == [] and by["backbone_2d.blocks"] == ["backbone_2d.blocks"]
    handle.release()
    assert all(len(line.split()) == 5 for line in handle.report().splitlines()[1:])


def test_h4_the_hook_costs_no_reference_to_the_model() -> None:
    model = Detector()
    freeze(model, LIST)
    model(points())
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def spectral(layer: nn.Module) -> None:
    nn.utils.parametrizations.spectral_norm(layer)


def weight_norm(layer: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.parametrize("undo", ["release", "unfreeze", "unfreeze by name"])
@pytest.mark.parametrize("trains", [True, False])
def test_h8_layers_replaced_by_sync_bn_are_released_without_a_forward(undo: str, trains: bool) -> None:
    model = Detector()
    model.vfe[1].bias.requires_grad_(trains)
    handle = freeze(model, ["vfe"])
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    {"release": handle.release, "unfreeze": lambda: unfreeze(model),
     "unfreeze by name": lambda: unfreeze(model, ["vfe.1", "vfe"])}[undo]()  # fmt: skip
    assert type(model.vfe[1]) is nn.SyncBatchNorm and model.vfe[1].training
    assert model.vfe[1].weight.requires_grad and model.vfe[1].bias.requires_grad is trains


@pytest.mark.parametrize("register", [spectral, weight_norm])
@pytest.mark.parametrize("trains", [True, False])
def test_h8_a_parametrization_registered_since_is_released_without_a_forward(register, trains: bool) -> None:
    model = Detector()
    model.vfe[0].weight.requires_grad_(trains)
    handle = freeze(model, ["vfe"])
    register(model.vfe[0])
    handle.release()
    assert {p.requires_grad for p in model.vfe[0].parameters()} == {trains}
    assert all(part.training for part in model.vfe[0].modules())


@pytest.mark.parametrize("trains", [True, False])
def test_h8_a_parametrization_removed_since_is_released_without_a_forward(trains: bool) -> None:
    model = Detector()
    model.vfe[0].weight.requires_grad_(trains)
    spectral(model.vfe[0])
    handle = freeze(model, ["vfe"])
    nn.utils.parametrize.remove_parametrizations(model.vfe[0], "weight")
    handle.release()
    assert model.vfe[0].weight.requires_grad is trains


def test_h8_a_layer_replaced_under_two_freezes_is_released_by_the_last_one() -> None:
    model = Detector()
    first, second = freeze(model, ["vfe"]), freeze(model, LIST)
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    first.release()
    assert is_frozen(model.vfe) and not model.vfe[1].weight.requires_grad
    second.release()
    assert model.vfe[1].weight.requires_grad and model.vfe[1].training


def test_h8_a_freeze_of_a_part_ends_with_the_whole_after_a_replacement() -> None:
    model = Detector()
    freeze(model.backbone_2d, ["blocks"])
    nn.SyncBatchNorm.convert_sync_batchnorm(model)
    unfreeze(model)
    assert all(p.requires_grad for p in model.parameters())
