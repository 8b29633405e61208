"""Task heads in OpenPCDet's models: ``add_task``, how they are built, trained and frozen."""

from __future__ import annotations

import gc
import logging
import weakref
from typing import Any

import pytest
import torch
from openpcdet_tasks import FLIP, LIST, Head, HeadWithMetric, OtherHead, build, number_of_point, scan_batch
from standin_runs import Standin
from torch import nn

from pcdet_freeze import openpcdet
from pcdet_freeze.errors import ConfigError, DataError, IntegrationError
from pcdet_freeze.integrations.openpcdet.session import session_of
from pcdet_freeze.integrations.openpcdet.tasks import registry

pytestmark = pytest.mark.usefixtures("no_tasks")


def test_a_section_becomes_a_named_module_that_is_built_with_what_it_accepts(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head)
    model = build(standin, SEGMENT_HEAD={"NAME": "Head"})
    assert list(dict(model.named_children()))[-1] == "segment_head"
    assert model.segment_head.layer.in_features == 8
    context = model.segment_head.context
    assert context["grid_size"] == [8, 8, 1] and context["class_names"] == ["Car"]
    assert not hasattr(build(standin), "segment_head")


def test_detections_are_bitwise_equal_with_and_without_the_head(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head)
    with torch.no_grad():
        scores = [
            [d["pred_scores"] for d in model.eval()(scan_batch())[0]]
            for model in (build(standin), build(standin, SEGMENT_HEAD={}))
        ]
    assert len(scores[0]) == 2 and all(map(torch.equal, *scores))


def test_the_loss_of_the_head_is_added_and_is_all_that_is_left_if_the_detection_is_frozen(
    standin: Standin,
) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head)
    model = build(standin, ["vfe", "backbone_2d", "dense_head"], SEGMENT_HEAD={}).train()
    ret_dict, tb_dict, _ = model(scan_batch())
    assert torch.equal(ret_dict["loss"], model.segment_head.out.square().mean()) and "loss_small" in tb_dict
    both, tb_dict, _ = build(standin, SEGMENT_HEAD={}).train()(scan_batch())
    assert {"loss_small", "rpn_loss_cls"} <= set(tb_dict) and both["loss"] > 0


def test_a_frozen_task_head_gives_no_loss_and_the_next_one_trains(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels")
    openpcdet.add_task("LANE_HEAD", OtherHead)
    names = ["vfe", "backbone_2d", "dense_head", "segment_head"]
    model = build(standin, names, SEGMENT_HEAD={}, LANE_HEAD={}).train()
    ret_dict = model(scan_batch())[0]
    ret_dict["loss"].backward()
    assert torch.equal(ret_dict["loss"], model.lane_head.out.square().mean())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "lane_head.layer.weight", "lane_head.layer.bias",
    }  # fmt: skip


def test_a_training_batch_without_the_labels_is_an_error(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="point_labels")
    model = build(standin, SEGMENT_HEAD={})
    model.eval()(scan_batch())
    with pytest.raises(DataError, match=r"MODEL.SEGMENT_HEAD .*'point_labels'.*build_dataloader"):
        model.train()(scan_batch())


def test_uninstall_restores_every_function_that_tasks_replaced(standin: Standin, loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", HeadWithMetric, labels="labels", read=number_of_point)
    found = loader(FLIP)
    model = build(standin, LIST.split(","), SEGMENT_HEAD={})
    own = {name for thing in (found, found.dataset, model) for name in vars(thing)}
    assert own >= {"prepare_data", "generate_prediction_dicts", "evaluation", "forward", "module_names"}
    openpcdet.uninstall()
    own = {name for thing in (found, found.dataset, model) for name in vars(thing)}
    assert not own & {"prepare_data", "generate_prediction_dicts", "evaluation", "forward", "module_names"}
    assert not any("pcdet_freeze" in name for name in own)
    assert "labels" not in next(iter(found)) and "loss_small" not in model.train()(scan_batch())[1]
    assert registry.registered() == ()


def test_a_data_set_with_labels_can_be_deleted(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", HeadWithMetric, labels="labels", read=number_of_point)
    found = loader(FLIP)
    kept = [weakref.ref(found), weakref.ref(found.dataset)]
    del found
    gc.collect()
    assert [thing() for thing in kept] == [None, None]


def test_a_wrong_class_name_and_a_taken_module_name_are_errors(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head)
    with pytest.raises(ConfigError, match=r"NAME is 'Tail'.*registered Head"):
        build(standin, SEGMENT_HEAD={"NAME": "Tail"})
    openpcdet.add_task("MODULE_LIST", Head)
    with pytest.raises(IntegrationError, match="module_list, but PointPillar has one"):
        build(standin, MODULE_LIST={})


def test_a_section_without_a_registered_head_is_a_warning(standin: Standin, caplog: Any) -> None:
    build(standin, LANE_HEAD={"NAME": "LaneHead"})
    assert "MODEL.LANE_HEAD became no module" in caplog.text and "--task" in caplog.text
    assert "if it is a head of your own" in caplog.text.lower() and "another name" in caplog.text
    assert "DENSE_HEAD" not in caplog.text


@pytest.mark.parametrize("names", [None, ["vfe"]])
def test_task_heads_are_logged_once_although_a_model_is_built_again(
    standin: Standin, caplog: Any, names: Any
) -> None:
    caplog.set_level(logging.INFO)
    openpcdet.add_task("SEGMENT_HEAD", Head)
    model = build(standin, names, SEGMENT_HEAD={}, LANE_HEAD={})
    if names:
        assert hasattr(session_of(model).rebuild(), "segment_head")  # type: ignore[union-attr]
    assert caplog.text.count("task head segment_head: Head") == 1
    assert caplog.text.count("MODEL.LANE_HEAD became no module") == 1


@pytest.mark.parametrize(
    ("section", "head", "more", "words"),
    [
        ("DENSE_HEAD", Head, {}, "none of OpenPCDet's own.*'DENSE_HEAD'"),
        ("segment_head", Head, {}, "in capitals.*'segment_head'"),
        ("A_HEAD", nn.Linear, {}, "get_loss"),
        ("A_HEAD", "Head", {}, "class with get_loss, but got 'Head'"),
        ("A_HEAD", Head, {"read": number_of_point}, "labels='...'"),
        ("A_HEAD", Head, {"labels": "a", "per": "voxel"}, "'point' or 'frame'.*'voxel'"),
        ("A_HEAD", Head, {"labels": "gt_boxes"}, "key of their own.*'gt_boxes'"),
        ("B_HEAD", OtherHead, {}, "B_HEAD can have one head.*Head.*OtherHead"),
        ("A_HEAD", Head, {"labels": "b", "ignore": 3}, "share the labels 'b'"),
    ],
)
def test_arguments_that_cannot_be_used_are_errors(section: str, head: Any, more: Any, words: str) -> None:
    openpcdet.add_task("B_HEAD", Head, labels="b")
    with pytest.raises(ConfigError, match=words):
        openpcdet.add_task(section, head, **more)
    assert [task.section for task in registry.registered()] == ["B_HEAD"]


def test_add_task_is_public_and_loaded_when_it_is_used() -> None:
    assert "add_task" in openpcdet.__all__ and openpcdet.add_task is registry.add_task
    with pytest.raises(AttributeError, match="no_such_name"):
        openpcdet.no_such_name  # noqa: B018
