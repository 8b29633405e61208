"""PillarVFE on valid points only, in training: the same function as the padded form (RAGGED: False)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from model_cases import batch, model_config, small_model
from ragged_cases import SLOTS, Pillars, assert_agree, norms_of, pillars_of, result_of, vfe_of
from torch import nn
from two_processes import torchrun, worker
from waits import PackageWaits

from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.models.vfe import pillar_vfe
from pcdet_freeze.ops.pillars import ragged_kernels, ragged_norm
from pcdet_freeze.ops.pillars.pillar_max import pillar_max
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.tensors import relative_error


def ran_ragged(vfe: Any, pillars: Pillars) -> bool:
    seen: list[int] = []
    keep = pillar_vfe.run_layer

    def noted(*args: Any) -> Any:
        seen.append(1)
        return keep(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pillar_vfe, "run_layer", noted)
        vfe(dict(pillars))
    return bool(seen)


USUAL = [1, 2, 3, 5, 1, 1, 4, 2] * 8
SHAPES: list[dict[str, Any]] = [
    {"filters": (16,)},
    {"filters": (16, 16)},
    {"filters": (16, 24, 16), "WITH_DISTANCE": True, "USE_ABSLOTE_XYZ": False},
    {"filters": (16, 16), "USE_NORM": False},
]


@pytest.mark.parametrize("options", SHAPES)
def test_features_gradients_and_running_statistics_agree_with_the_padded_form(options: Any) -> None:
    assert_agree(vfe_of(**options), pillars_of(USUAL))


@pytest.mark.parametrize("options", SHAPES)
def test_in_float64_both_forms_agree_to_float64(options: Any) -> None:
    vfe, pillars = vfe_of(**options).double(), pillars_of(USUAL, dtype=torch.float64)
    assert_agree(vfe, pillars, 1e-9, 1e-9)  # torch's kernel rounds eps to float32


@torch.no_grad()
@pytest.mark.parametrize("filters", [(64,), (64, 64), (32, 64, 48)])
def test_in_eval_mode_both_forms_are_bitwise_equal(filters: Any) -> None:
    vfe, pillars = vfe_of(filters).eval(), pillars_of(USUAL)
    padded, ragged = (result_of(vfe, pillars, form)["features"] for form in (False, True))
    assert torch.equal(padded, ragged) if rounds_rows_alike(vfe) else relative_error(padded, ragged) <= 2e-7


def test_in_train_mode_features_of_64_channels_are_bitwise_equal() -> None:
    # the statistics have the bits of torch's, whose sums have another order in narrower layers
    vfe = vfe_of((64,))
    for counts in (USUAL, [SLOTS] * 9, [1] * 333):
        padded, ragged = (result_of(vfe, pillars_of(counts), form)["features"] for form in (False, True))
        assert torch.equal(padded, ragged) or not rounds_rows_alike(vfe)


@pytest.mark.parametrize("block", [1, 100])
def test_the_size_of_blocks_changes_no_bit(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    vfe, pillars = vfe_of((16, 16)), pillars_of(USUAL)
    whole = result_of(vfe, pillars, True)
    monkeypatch.setattr(ragged_norm, "BLOCK", block * 16)
    for name, value in result_of(vfe, pillars, True).items():
        assert torch.equal(value, whole[name]), name


def rounds_rows_alike(vfe: Any) -> bool:
    """Whether matrix products of few and of many rows round alike here; narrow ones run other kernels."""
    linear = [layer.linear for layer in vfe.pfn_layers]
    rows = [torch.randn(SLOTS * len(USUAL), each.in_features) for each in linear]
    return all(torch.equal(each(many)[:9], each(many[:9])) for each, many in zip(linear, rows, strict=True))


@pytest.mark.parametrize("seed", range(12))
def test_random_occupancy_agrees_with_the_padded_form(seed: int) -> None:
    draw = np.random.RandomState(seed)
    kinds: list[Any] = [1, SLOTS, draw.randint(1, SLOTS + 1, 40), draw.randint(0, 2, 40) * SLOTS, [0, 1, 0]]
    kind = kinds[seed % len(kinds)]
    counts = np.full(draw.randint(1, 60), kind) if isinstance(kind, int) else kind
    filters = [(16,), (16, 16)][seed % 2]
    vfe = vfe_of(filters, USE_NORM=bool(seed % 5))
    for norm in norms_of(vfe):
        norm.momentum = [None, 0.0, 0.3, 1.0][draw.randint(4)]
    assert_agree(vfe, pillars_of(counts, seed))


@pytest.mark.parametrize("counts", [[1], [SLOTS], [2, 3]])
@pytest.mark.parametrize("filters", [(16,), (16, 16)])
def test_one_or_two_pillars_agree_with_the_padded_form(counts: Any, filters: Any) -> None:
    # in float64: their gradients through the statistics cancel nearly to zero
    assert_agree(vfe_of(filters).double(), pillars_of(counts, dtype=torch.float64), 1e-9, 1e-9)


@pytest.mark.parametrize("sync", [False, True])
def test_a_batch_without_a_pillar_changes_no_statistics(sync: bool) -> None:
    vfe, pillars = vfe_of((16, 16)), pillars_of([])
    if sync:
        vfe = nn.SyncBatchNorm.convert_sync_batchnorm(vfe)
    ragged = result_of(vfe, pillars, True)
    assert ragged["features"].shape == (0, 16)
    assert all(torch.equal(buffer, ragged[name]) for name, buffer in vfe.named_buffers())


@pytest.mark.parametrize("momentum", [None, 0.0, 0.1])
def test_running_statistics_follow_the_momentum_over_several_batches(momentum: Any) -> None:
    both = [vfe_of((16, 16)) for _ in range(2)]
    both[0].ragged = False
    for vfe in both:
        for norm in norms_of(vfe):
            norm.reset_running_stats()
            norm.momentum = momentum
        for seed in range(3):
            vfe(pillars_of(USUAL, seed))
    for (name, padded), (_, ragged) in zip(both[0].named_buffers(), both[1].named_buffers(), strict=True):
        assert relative_error(padded, ragged) <= 1e-6, name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
def test_norm_layers_without_running_statistics_use_those_of_the_batch(training: bool, affine: bool) -> None:
    vfe = vfe_of((16, 16))
    for layer in vfe.pfn_layers:
        layer.norm = nn.BatchNorm1d(layer.norm.num_features, 1e-3, affine=affine, track_running_stats=False)
    assert_agree(vfe.train(training), pillars_of(USUAL))


def test_statistics_that_are_no_longer_tracked_stay() -> None:
    vfe = vfe_of()
    vfe.pfn_layers[0].norm.track_running_stats = False
    assert_agree(vfe, pillars_of(USUAL))
    assert torch.equal(result_of(vfe, pillars_of(USUAL), True)["pfn_layers.0.norm.running_mean"],
                       vfe.pfn_layers[0].norm.running_mean)  # fmt: skip


def test_a_norm_layer_without_affine_parameters_agrees_with_the_padded_form() -> None:
    vfe = vfe_of((16, 16))
    for layer in vfe.pfn_layers:
        layer.norm = nn.BatchNorm1d(layer.norm.num_features, 1e-3, affine=False)
    assert_agree(vfe, pillars_of(USUAL))


@pytest.mark.parametrize("parameters", [True, False])
def test_locked_norm_layers_agree_with_the_padded_form(parameters: bool) -> None:
    model = small_model(model_config() | {"VFE": {"NAME": "PillarVFE", "NUM_FILTERS": [16, 8]}})
    freeze(model, FreezePlan(entries=("vfe",), parameters=parameters), certify=False)
    vfe = model.train().vfe
    given = batch((30, 20))
    padded, ragged = (result_of(vfe, given, form) for form in (False, True))
    assert (len(padded) > len(dict(vfe.named_buffers())) + 1) is not parameters  # gradients
    assert_agree(vfe, given)
    assert all(torch.equal(b, padded[n]) and torch.equal(b, ragged[n]) for n, b in vfe.named_buffers())


def test_a_trainable_norm_after_a_frozen_linear_layer_agrees_with_the_padded_form() -> None:
    vfe = vfe_of((16, 16))
    vfe.pfn_layers[0].linear.requires_grad_(False)
    assert_agree(vfe, pillars_of(USUAL))


def test_the_gradient_reaches_the_points() -> None:
    vfe, pillars = vfe_of((16, 16)).double(), pillars_of(USUAL, dtype=torch.float64)
    found = []
    for vfe.ragged in (False, True):
        points = pillars["voxels"].clone().requires_grad_()
        vfe({**pillars, "voxels": points})["pillar_features"].square().sum().backward()
        found.append(points.grad)
    filled = torch.arange(SLOTS) < pillars["voxel_num_points"].unsqueeze(1)
    assert relative_error(found[0][filled], found[1][filled]) <= 1e-10


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_under_autocast_features_and_statistics_agree_and_gradients_within_16_bits(kind: Any) -> None:
    vfe, pillars = vfe_of((16, 16)), pillars_of(USUAL)
    with torch.autocast("cpu", dtype=kind):
        padded, ragged = (result_of(vfe, pillars, form) for form in (False, True))
    for name, value in padded.items():
        assert value.dtype == ragged[name].dtype, name
        limit = 8 * torch.finfo(kind).eps if name.endswith(("weight", "bias")) else 1e-6
        assert relative_error(value, ragged[name]) <= limit, name


def hooked(part: Any) -> None:
    part.register_forward_hook(lambda *_: None)


def set_forward(part: Any) -> None:
    part.forward = lambda *args, own=part.forward: own(*args)


class OtherNorm(nn.BatchNorm1d):
    """A user's subclass."""


class OtherLinear(nn.Linear):
    """A user's subclass."""


UNKNOWN: dict[str, Any] = {
    "hook on the layer": lambda layer: hooked(layer),
    "hook on the norm": lambda layer: hooked(layer.norm),
    "pre-hook": lambda layer: layer.linear.register_forward_pre_hook(lambda *_: None),
    "backward hook": lambda layer: layer.norm.register_full_backward_hook(lambda *_: None),
    "forward of the instance": lambda layer: set_forward(layer.linear),
    "parametrization": lambda layer: nn.utils.parametrizations.weight_norm(layer.linear),
    "subclass of a norm": lambda layer: setattr(layer, "norm", OtherNorm(layer.norm.num_features)),
    "subclass of a layer": lambda layer: setattr(layer, "linear", OtherLinear(10, 16, bias=False)),
    "something else": lambda layer: layer.add_module("more", nn.Identity()),
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_layers_that_a_user_changed_run_as_written(kind: str) -> None:
    vfe, pillars = vfe_of(), pillars_of(USUAL)
    assert ran_ragged(vfe, pillars)
    UNKNOWN[kind](vfe.pfn_layers[0])
    assert not ran_ragged(vfe, pillars)
    padded, ragged = (result_of(vfe, pillars, form) for form in (False, True))
    assert all(torch.equal(value, ragged[name]) for name, value in padded.items())


def test_a_subclass_and_the_key_ragged_false_run_as_written() -> None:
    plain, other = vfe_of(RAGGED=False), vfe_of()
    other.__class__ = type("Own", (type(other),), {})
    assert not ran_ragged(plain, pillars_of(USUAL)) and plain.forward_frozen is None
    assert not ran_ragged(other, pillars_of(USUAL))


def test_a_hook_of_this_package_changes_no_bit() -> None:
    vfe, pillars, seen = vfe_of(), pillars_of(USUAL), []
    before = result_of(vfe, pillars, True)
    hook = PicklableHook(lambda module, args, output: seen.append(output.grad_fn))
    norm = vfe.pfn_layers[0].norm
    norm.register_forward_hook(hook)
    assert ran_ragged(copy.deepcopy(vfe), pillars)
    after = result_of(vfe, pillars, True)
    vfe(dict(pillars))
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert seen[-1] is not None and "forward" not in vars(norm)


def test_the_gradient_of_equal_points_goes_to_the_first_one() -> None:
    for dtype in (torch.float32, torch.bfloat16):  # the compiled form, and that of other devices
        rows = torch.tensor([[1.0], [1.0], [2.0], [2.0], [2.0], [3.0]], dtype=dtype).requires_grad_()
        highest = pillar_max(rows, torch.tensor([2, 1, 2]), torch.tensor([0, 0, 1, 2, 2]), 2)
        highest.backward(torch.tensor([[1.0], [10.0], [100.0]], dtype=dtype))
        assert highest.flatten().tolist() == [1, 3, 2]
        assert rows.grad.flatten().tolist() == [1, 0, 0, 100, 0, 10]


def test_on_a_device_the_host_waits_once_for_the_number_of_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ragged_kernels, "COMPILED", ())
    vfe, pillars = vfe_of((16, 16)), pillars_of(USUAL)
    for norm in norms_of(vfe):
        norm.momentum = None
    with PackageWaits() as waits:
        vfe(dict(pillars))["pillar_features"].sum().backward()
    assert list(waits.lines.values()) == [1]


def test_both_forms_of_the_maximum_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    vfe, pillars = vfe_of((16, 16)), pillars_of(USUAL)
    compiled = result_of(vfe, pillars, True)
    monkeypatch.setattr(ragged_kernels, "COMPILED", ())
    plain = result_of(vfe, pillars, True)
    assert all(relative_error(value, plain[name]) <= 1e-6 for name, value in compiled.items())


def test_a_compiled_detector_runs_the_padded_form() -> None:
    vfe = vfe_of()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.compiler, "is_compiling", lambda: True)
        assert not ran_ragged(vfe, pillars_of(USUAL))


@pytest.mark.slow
def test_statistics_and_gradients_of_two_ranks_are_those_of_one_process(tmp_path: Path) -> None:
    done = torchrun(worker("ragged_norm_worker.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr
    errors = torch.load(tmp_path / "errors.pt", weights_only=True)
    assert len(errors) == 10
    for case, found in errors.items():
        for name, error in found.items():
            assert error <= (1e-5 if name.endswith(("weight", "bias")) else 1e-6), (case, name)
