"""F5, F6 inside OpenPCDet: FUSE, PREFIX_DTYPE, CHANNELS_LAST, COMPILE; CACHE is an error."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from openpcdet_launch import torchrun_plugin
from pillar_detector import (
    SLOTS,
    CoarseBackbone2D,
    DrawingHead,
    FarVFE,
    FlatteningHead,
    GreedyVFE,
    RoughBackbone2D,
    ScaledVFE,
    pillar_batch,
    pillar_detector,
    run,
)
from standin_runs import RANDOM, Standin, frozen_words, seed
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pcdet_freeze import FreezeError, is_frozen, openpcdet
from pcdet_freeze.integrations.openpcdet.prefix.valid_points import valid_points_form
from pcdet_freeze.integrations.openpcdet.session import session_of
from pcdet_freeze.utils.rng import rng_state, same_rng_state
from pcdet_freeze.utils.tensors import relative_error

TRUNK = ["vfe", "backbone_2d"]
FUSE = {"FUSE": True}


@pytest.fixture
def log(standin: Standin, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    openpcdet.install()
    caplog.set_level(logging.INFO)
    return caplog


def plan_of(model: Any) -> Any:
    session = session_of(model)
    assert session is not None
    return session.prefix.replanner.plan


def warnings(log: pytest.LogCaptureFixture) -> str:
    """Those about the frozen prefix."""
    found = [r.getMessage() for r in log.records if r.levelno >= logging.WARNING]
    return "\n".join(line for line in found if "MODEL.FREEZE." in line)


def test_f5_without_the_key_nothing_is_folded_and_no_bit_changes(standin: Standin, log: Any) -> None:
    plain = run(pillar_detector(standin, None))
    model = pillar_detector(standin, TRUNK)
    hand = pillar_detector(standin, None)
    for name in TRUNK:
        hand.get_submodule(name).requires_grad_(False).eval()
    assert torch.equal(run(model).loss, run(hand).loss) and not torch.equal(run(model).loss, plain.loss)
    assert plan_of(model).prefix == () and "rozen prefix" not in log.text


def test_f5_features_are_those_of_the_model_as_written_within_2e_6(standin: Standin, log: Any) -> None:
    plain, fast = (run(pillar_detector(standin, TRUNK, options)) for options in ({}, FUSE))
    assert 0 < relative_error(plain.maps, fast.maps) <= 2e-6
    assert relative_error(plain.batch["pillar_features"], fast.batch["pillar_features"]) <= 2e-6
    assert relative_error(plain.loss, fast.loss) <= 2e-6


def test_f5_the_log_names_what_runs_faster_and_its_relative_error(standin: Standin, log: Any) -> None:
    model = pillar_detector(standin, TRUNK, FUSE)
    run(model)
    assert plan_of(model).quick == ("vfe", "backbone_2d") and len(plan_of(model).folds) == 6
    assert "6 norm layers folded" in log.text and "vfe on its valid points only" in log.text
    assert "backbone_2d with its deblocks writing into one map" in log.text
    assert f"maximum relative error {plan_of(model).difference:.1e}" in log.text
    assert warnings(log) == ""


def test_f5_the_vfe_computes_no_padded_slot(standin: Standin, log: Any) -> None:
    def operations(options: Any) -> int:
        model = pillar_detector(standin, TRUNK, options)
        run(model)
        with FlopCounterMode(display=False) as count:
            run(model)
        return count.get_total_flops()

    batch = pillar_batch()
    points, pillars = int(batch["voxel_num_points"].sum()), len(batch["voxels"])
    # two linear layers, 10 x 4 and 8 x 8; a row of padding for all pillars, then one for each
    padded = 2 * SLOTS * pillars * (10 * 4 + 8 * 8)
    valid = 2 * ((points + 1) * 10 * 4 + (points + pillars) * 8 * 8)
    assert operations({}) - operations(FUSE) == padded - valid > 0


def test_f5_frozen_tensors_names_and_evaluation_stay_the_same(standin: Standin, log: Any) -> None:
    model = pillar_detector(standin, TRUNK, FUSE)
    state, shapes = {k: v.clone() for k, v in model.state_dict().items()}, list(model.state_dict())
    before = run(model.eval()).maps
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        run(model.train(), step).loss.backward()
        optimizer.step()
    assert list(model.state_dict()) == shapes and torch.equal(run(model.eval()).maps, before)
    frozen = [key for key in state if key.startswith(("vfe", "backbone_2d"))]
    assert all(torch.equal(state[key], model.state_dict()[key]) for key in frozen)
    assert not any("forward" in module.__dict__ for module in model.modules() if module is not model)


@pytest.mark.parametrize("kind", [ScaledVFE, FarVFE, GreedyVFE])
def test_f5_a_vfe_that_computes_something_else_runs_as_written(standin: Standin, log: Any, kind: Any) -> None:
    plain, model = pillar_detector(standin, TRUNK, {}, PillarVFE=kind), None
    model = pillar_detector(standin, TRUNK, FUSE, PillarVFE=kind)
    assert relative_error(run(plain).batch["pillar_features"], run(model).batch["pillar_features"]) <= 2e-6
    assert plan_of(model).quick == ("backbone_2d",) and len(plan_of(model).folds) == 6
    assert "runs as written: vfe: its relative error would be" in log.text


def test_f5_one_pillar_alone_keeps_the_shape_of_the_module(standin: Standin, log: Any) -> None:
    model = pillar_detector(standin, TRUNK, FUSE)
    form: Any = valid_points_form(model.vfe)
    own, fast = model.vfe(pillar_batch(pillars=1)), form(pillar_batch(pillars=1))
    assert torch.equal(own["pillar_features"], fast["pillar_features"]) and own["pillar_features"].dim() == 1


def test_f5_above_the_tolerance_everything_runs_as_written_with_a_warning(standin: Standin, log: Any) -> None:
    plain = run(pillar_detector(standin, TRUNK, {}, Backbone2D=RoughBackbone2D))
    model = pillar_detector(standin, TRUNK, FUSE, Backbone2D=RoughBackbone2D)
    fast = run(model)
    assert torch.equal(plain.maps, fast.maps) and torch.equal(plain.loss, fast.loss)
    assert "run as written" in warnings(log) and "FUSE: True" in warnings(log)


def test_f5_fuse_without_effect_is_a_warning(standin: Standin, log: Any) -> None:
    run(pillar_detector(standin, ["dense_head.conv_box"], FUSE))
    assert "MODEL.FREEZE.FUSE: True" in warnings(log) and "has no effect" in warnings(log)


def test_f5_a_forward_that_fails_on_the_faster_maps_runs_as_written(standin: Standin, log: Any) -> None:
    plain = run(pillar_detector(standin, TRUNK, {}, DenseHead=FlatteningHead))
    fast = run(pillar_detector(standin, TRUNK, FUSE, DenseHead=FlatteningHead))
    assert torch.equal(plain.loss, fast.loss)
    assert "has no effect" in warnings(log) and "view" in warnings(log)


def test_f6_maps_are_channels_last_unless_the_key_says_otherwise(standin: Standin, log: Any) -> None:
    last = torch.channels_last
    fused = run(pillar_detector(standin, TRUNK, FUSE)).maps
    plain = run(pillar_detector(standin, TRUNK, {**FUSE, "CHANNELS_LAST": False})).maps
    assert fused.is_contiguous(memory_format=last) and plain.is_contiguous()
    assert relative_error(plain, fused) <= 2e-6


def test_f6_the_relative_error_of_a_bf16_prefix_is_in_the_log(standin: Standin, log: Any) -> None:
    plain = run(pillar_detector(standin, TRUNK, {}))
    model = pillar_detector(standin, TRUNK, {"PREFIX_DTYPE": "bfloat16"})
    fast = run(model)
    assert fast.maps.dtype == torch.float32 and 1e-4 < relative_error(plain.maps, fast.maps) < 0.1
    assert f"maximum relative error {plan_of(model).difference:.1e}" in log.text


def test_f6_a_bf16_prefix_above_3e_2_runs_as_written_with_a_warning(standin: Standin, log: Any) -> None:
    plain = run(pillar_detector(standin, TRUNK, {}, Backbone2D=CoarseBackbone2D))
    model = pillar_detector(standin, TRUNK, {"PREFIX_DTYPE": "bfloat16"}, Backbone2D=CoarseBackbone2D)
    assert torch.equal(run(model).maps, plain.maps)
    error = re.search(r"relative error of (\S+) \(L2\) .* at most 3e-02", warnings(log))
    assert error is not None and 3e-2 < float(error[1]) < 0.15


def test_f6_a_bf16_prefix_applies_where_the_batch_holds_trainable_tensors(standin: Standin, log: Any) -> None:
    model = pillar_detector(standin, TRUNK, {"PREFIX_DTYPE": "bfloat16"})
    weight = nn.Parameter(torch.ones(()))
    model.register_forward_pre_hook(lambda module, args: args[0].update(other=weight * 2))
    fast = run(model)
    assert relative_error(run(pillar_detector(standin, TRUNK, {})).maps, fast.maps) > 1e-4
    assert fast.batch["other"].requires_grad and fast.loss.requires_grad


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_f6_parts_of_the_prefix_are_compiled(standin: Standin, log: Any) -> None:
    model = pillar_detector(standin, TRUNK, {**FUSE, "COMPILE": True})
    assert relative_error(run(pillar_detector(standin, TRUNK, {})).maps, run(model).maps) <= 1e-5
    parts = ("blocks.0", "deblocks.0", "blocks.1", "deblocks.1")
    assert plan_of(model).compiled == tuple(f"backbone_2d.{part}" for part in parts)


def test_f7_a_cache_is_an_error_that_says_why(standin: Standin, log: Any) -> None:
    with pytest.raises(FreezeError, match=r"CACHE.*one random stream"):
        pillar_detector(standin, TRUNK, {"CACHE": "folder"})


def test_f5_a_module_with_a_hook_runs_as_written_and_the_hook_sees_its_output(
    standin: Standin, log: Any
) -> None:
    plain, model = (pillar_detector(standin, TRUNK, options) for options in ({}, FUSE))
    run(plain), run(model)
    seen: list[torch.Tensor] = []
    for one in (plain, model):
        norm = one.backbone_2d.blocks[0][2]
        norm.register_forward_hook(lambda module, args, output: seen.append(output))
        run(one)
    assert relative_error(*seen) <= 2e-6 and (seen[1] < 0).any()  # no ReLU wrote into it


def test_f5_the_random_generators_of_the_training_are_not_touched(standin: Standin, log: Any) -> None:
    states = []
    for options in ({}, FUSE):
        model = pillar_detector(standin, TRUNK, options, DenseHead=DrawingHead)
        seed(3)
        before = rng_state()
        run(model)
        states.append(rng_state())
        changed = {key for key, state in states[-1].items() if not same_rng_state(state, before[key])}
        assert changed == {"python", "numpy", "torch"}
    assert len(plan_of(model).folds) == 6 and same_rng_state(*states)


def test_f5_the_data_set_of_the_detector_is_not_copied(standin: Standin, log: Any) -> None:
    class Large:
        def __deepcopy__(self, memo: Any) -> Any:
            raise AssertionError("a data set may be too large for a copy")

    model = pillar_detector(standin, TRUNK, FUSE)
    model.dataset = session_of(model).prefix.replanner.shared[0]  # type: ignore[union-attr]
    model.dataset.infos = Large()
    run(model)
    assert plan_of(model).quick == ("vfe", "backbone_2d")


def test_f5_uninstall_takes_the_folding_off(standin: Standin, log: Any) -> None:
    model = pillar_detector(standin, TRUNK, FUSE)
    run(model)
    openpcdet.uninstall()
    assert not is_frozen(model.vfe) and not model._forward_pre_hooks
    assert run(model).loss.requires_grad


@pytest.mark.parametrize("names", ["vfe,backbone_2d", "vfe,backbone_2d.blocks"])
def test_f5_a_training_with_fuse_ends_with_its_certificate(standin: Standin, names: str) -> None:
    words = frozen_words(names, *RANDOM)
    plain = standin.train("pointpillar", *words, tag="plain")
    fused = standin.train("pointpillar", *words, "MODEL.FREEZE.FUSE", "True", tag="fused")
    assert fused.code == 0, fused.err
    assert "norm layers folded" in fused.err and "certificate intact" in fused.err
    assert "norm layers folded" not in plain.err
    losses = [[float.fromhex(loss) for loss in one.losses] for one in (plain, fused)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4) and losses[0] != losses[1]


def test_f5_a_frozen_head_that_a_second_stage_reads_trains_with_fuse(standin: Standin) -> None:
    names = "vfe,backbone_3d,map_to_bev_module,backbone_2d,dense_head"
    words = frozen_words(names, *RANDOM)
    plain = standin.train("pv_rcnn", *words, tag="plain")
    fused = standin.train("pv_rcnn", *words, "MODEL.FREEZE.FUSE", "True", tag="fused")
    assert fused.code == 0, fused.err
    assert "dense_head" in next(line for line in fused.err.splitlines() if "Frozen prefix (" in line)
    losses = [[float.fromhex(loss) for loss in one.losses] for one in (plain, fused)]
    assert losses[1][0] == pytest.approx(losses[0][0], rel=1e-5)
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)  # Adam's first steps amplify rounding


def test_r1_a_resume_with_fuse_is_folded_from_its_first_step(standin: Standin) -> None:
    words = frozen_words("vfe,backbone_2d", *RANDOM, "MODEL.FREEZE.FUSE", "True")
    standin.train("pointpillar", "--epochs", "1", *words)
    resumed = standin.train("pointpillar", "--epochs", "2", *words)
    assert "start training from epoch 1" in resumed.err and "norm layers folded" in resumed.err
    before, after = (resumed.state(epoch)["model_state"] for epoch in (1, 2))
    frozen = [key for key in before if key.startswith(("vfe", "backbone_2d"))]
    assert frozen and all(torch.equal(before[key], after[key]) for key in frozen)


@pytest.mark.slow
def test_h5_two_ranks_train_with_fuse(tmp_path: Path) -> None:
    words = frozen_words("vfe,backbone_2d", *RANDOM, "MODEL.FREEZE.FUSE", "True")
    cfg = "tools/cfgs/toy_models/pointpillar.yaml"
    done = torchrun_plugin(
        tmp_path, "tools/train.py", "--launcher", "pytorch", "--cfg_file", cfg, "--epochs", "1", *words
    )
    assert done.returncode == 0, done.stderr
    assert "norm layers folded" in done.stderr and "certificate intact" in done.stderr
