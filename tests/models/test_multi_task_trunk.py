"""BaseBEVBackboneMultiTask: branches, their shapes, and skipped branches in training (T1)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from task_cases import STAGE_2, STAGE_3, task_batch, task_config, task_model

from pcdet_freeze.errors import ConfigError, FreezeError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.data_flow.drift_lint import lint
from pcdet_freeze.freezing.data_flow.module_graph import explain_steps
from pcdet_freeze.models.backbones_2d import EncoderDecoder, MixSegNet


def ran(model: Any, batch_dict: dict[str, Any]) -> set[str]:
    """Children of the trunk that ran in a forward."""
    found: set[str] = set()
    hooks = [
        part.register_forward_hook(lambda *_, name=name: found.add(name))
        for name, child in model.backbone_2d.named_children()
        for part in child.modules()
    ]
    model(batch_dict)
    for hook in hooks:
        hook.remove()
    return found


def test_the_trunk_without_other_tasks_equals_that_of_a_detector() -> None:
    plain, config = task_model(), task_config()
    config["BACKBONE_2D"] = {
        **{k: v for k, v in config["BACKBONE_2D"].items() if k[:3] not in ("OTH", "SEG", "LAN", "MIX")},
        "NAME": "BaseBEVBackbone",
    }
    same = task_model(config=config)
    assert list(plain.state_dict()) == list(same.state_dict())
    same.load_state_dict(plain.state_dict())
    assert torch.equal(plain.train()(task_batch())[0]["loss"], same.train()(task_batch())[0]["loss"])


def test_a_listed_task_adds_its_branch_under_the_names_of_the_list() -> None:
    both = dict(task_model("segment", "lane").backbone_2d.named_children())
    assert list(both) == ["blocks", "deblocks", "segblocks", "seg_out_conv", "laneblocks", "mixsegnet"]
    assert list(dict(task_model("lane").backbone_2d.named_children()))[2:] == ["laneblocks", "mixsegnet"]


@pytest.mark.parametrize("size", [(32, 32), (20, 36), (17, 23)])
def test_every_shape_follows_from_the_map(size: tuple[int, int]) -> None:
    rows, columns = size
    x = torch.randn(2, 6, rows, columns)
    assert EncoderDecoder(6, (8, 10, 12), (0, 1, 0), 0.1)(x).shape == (2, 8, rows, columns)
    assert MixSegNet(6, size, out=5, patch=8, width=16, depth=2, momentum=0.1)(x).shape == (
        2,
        5,
        rows,
        columns,
    )


def test_the_mixer_sees_the_whole_map() -> None:
    net = MixSegNet(3, (32, 32), out=4, patch=8, width=16, depth=1, momentum=0.1).eval()
    x = torch.randn(1, 3, 32, 32, requires_grad=True)
    net(x)[0, :, :8, :8].sum().backward()  # a whole patch, since ReLU makes single cells constant
    assert x.grad is not None and x.grad[0, :, 24:, 24:].any()


def test_each_branch_writes_its_key() -> None:
    given = task_batch()
    task_model("segment", "lane").eval()(given)
    assert given["spatial_features_2d"].shape == (2, 16, 16, 16)
    assert given["seg_features_2d"].shape == (2, 8, 32, 32)
    assert given["lane_features_2d"].shape == (2, 8, 16, 16)


@pytest.mark.parametrize(
    ("entries", "alive"),
    [
        ([], {"blocks", "deblocks", "segblocks", "seg_out_conv", "laneblocks", "mixsegnet"}),
        (STAGE_2, {"segblocks", "seg_out_conv", "laneblocks", "mixsegnet"}),
        (STAGE_3, {"laneblocks", "mixsegnet"}),
        ([*STAGE_3, "!backbone_2d.deblocks"], {"blocks", "deblocks", "laneblocks", "mixsegnet"}),
        (["backbone_2d", "lane_head"], {"blocks", "deblocks", "segblocks", "seg_out_conv"}),
    ],
)
def test_t1_a_frozen_branch_whose_output_nothing_needs_does_not_run(
    entries: list[str], alive: set[str]
) -> None:
    model = task_model("segment", "lane")
    freeze(model, entries)
    assert ran(model.train(), task_batch()) == alive
    assert len(ran(model.eval(), task_batch())) == 6


SHARED = {"TASK_INPUT": "spatial_features_2d", "LANEBLOCKS": {"LAYER_STRIDES": [1, 1]}}


def shared_model() -> Any:
    config = task_config("segment", "lane")
    config["BACKBONE_2D"] |= SHARED
    return task_model(config=config)


def test_branches_read_the_map_of_the_detector_where_the_config_says_so() -> None:
    model, given = shared_model(), task_batch()
    model.eval()(given)
    assert given["seg_features_2d"].shape[2:] == given["spatial_features_2d"].shape[2:]
    model.train()(task_batch())
    loss = model.get_head_losses()[0]["lane_head"]
    assert torch.autograd.grad(loss, model.backbone_2d.blocks[0][1].weight)[0].any()


def test_t1_a_frozen_detector_that_branches_read_runs_without_its_head() -> None:
    model = shared_model()
    freeze(model, STAGE_3)
    assert ran(model.train(), task_batch()) == {"blocks", "deblocks", "laneblocks", "mixsegnet"}
    assert "does not compute seg_features_2d in training" in explain_steps(model)[0]


def test_p3_the_lint_knows_that_shared_blocks_feed_every_head() -> None:
    model = shared_model()
    freeze(model, [*STAGE_3, "!backbone_2d.blocks"])
    found = " ".join(map(str, lint(model)))
    assert "dense_head is frozen, but backbone_2d.blocks" in found
    assert "segment_head is frozen, but backbone_2d.blocks" in found


def test_t1_skipped_branches_are_logged() -> None:
    model = task_model("segment", "lane")
    freeze(model, STAGE_3)
    assert explain_steps(model)[0] == (
        "backbone_2d does not compute seg_features_2d, spatial_features_2d in training: no running "
        "module reads them"
    )


def test_t1_leaving_branches_out_changes_no_gradient() -> None:
    model, same = task_model("segment", "lane"), task_model("segment", "lane")
    freeze(model, STAGE_3)
    freeze(same, STAGE_3)
    whole = same.backbone_2d.forward
    same.backbone_2d.forward = lambda batch_dict, skip: whole(batch_dict)
    for each in (model, same):
        each.train()(task_batch())[0]["loss"].backward()
    wanted = {n: p.grad for n, p in same.named_parameters() if p.grad is not None}
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(grad, wanted[name]) for name, grad in found.items())


def test_p3_the_lint_uses_the_branches_inside_the_trunk() -> None:
    model = task_model("segment", "lane")
    freeze(model, STAGE_3)
    assert lint(model) == []
    model = task_model("segment", "lane")
    freeze(model, [*STAGE_2[:2], "dense_head"])
    (drift,) = lint(model)
    assert str(drift).startswith("dense_head is frozen, but backbone_2d.deblocks feeds it and is trainable")


def test_a_frozen_detector_gives_the_same_detections_after_training_another_task() -> None:
    model = task_model("segment", "lane")
    freeze(model, STAGE_2)
    before = model.eval()(task_batch())[0]
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(task_batch())[0]["loss"].backward()
    optimizer.step()
    after = model.eval()(task_batch())[0]
    for was, now in zip(before, after, strict=True):
        assert all(torch.equal(was[key], now[key]) for key in ("pred_boxes", "pred_scores", "pred_labels"))
        assert not torch.equal(was["pred_lane_conf"], now["pred_lane_conf"])


def test_a_head_in_the_list_that_the_model_lacks_is_an_error_that_names_it() -> None:
    with pytest.raises(FreezeError, match="lane_head"):
        freeze(task_model("segment"), ["vfe", "lane_head"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"OTHER_TASKS": ["segment", "parking"]},
            r"OTHER_TASKS\[1\] must be one of segment, lane; got 'parking'",
        ),
        ({"OTHER_TASKS": ["lane", "lane"]}, "each once"),
        ({"SEGBLOCKS": {"LAYER_NUMS": [1], "NUM_FILTERS": [8, 8]}}, "one entry per level"),
        ({"LANEBLOCKS": {"LAYER_STRIDES": [1]}}, "one entry per level"),
        ({"MIXSEGNET": {"PATCH_SIZE": 0}}, "PATCH_SIZE must be a whole number, 1 or more; got 0"),
        ({"MIXSEGNET": {"PATCHES": 4}}, "MODEL.BACKBONE_2D.MIXSEGNET.PATCHES is not a key"),
    ],
)
def test_a_fault_in_a_branchs_settings_is_one_clear_error(change: dict[str, Any], message: str) -> None:
    config = task_config()
    config["BACKBONE_2D"] |= change
    with pytest.raises(ConfigError, match=message):
        task_model(config=config)


def test_a_head_without_its_branch_is_an_error_that_names_the_key() -> None:
    config = task_config("lane")
    config["BACKBONE_2D"]["OTHER_TASKS"] = []
    with pytest.raises(ConfigError, match="reads lane_features_2d, which no module before it writes"):
        task_model(config=config)
