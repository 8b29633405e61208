"""A complete PointPillar: outputs, unmodified inputs, and unusual batches."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from model_cases import batch, model_config, small_model

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.models import load_data_to_gpu

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
LOSSES = ["loss_rpn", "rpn_loss_cls", "rpn_loss_loc", "rpn_loss_dir", "rpn_loss"]


def test_training_returns_the_loss_and_its_parts() -> None:
    ret_dict, tb_dict, disp_dict = small_model().train()(batch())
    assert list(ret_dict) == ["loss"]
    assert list(tb_dict) == LOSSES
    assert disp_dict == {}
    parts = sum(tb_dict[name] for name in LOSSES[1:4])
    assert ret_dict["loss"].item() == pytest.approx(parts) == pytest.approx(tb_dict["rpn_loss"])


def test_every_parameter_gets_a_finite_gradient() -> None:
    model = small_model().train()
    model(batch())[0]["loss"].backward()
    assert all(torch.isfinite(p.grad).all() and p.grad.any() for p in model.parameters())


def test_evaluation_returns_a_dict_a_sample_and_recall_counts() -> None:
    pred_dicts, recall_dict = small_model().eval()(batch())
    assert len(pred_dicts) == 2
    for found in pred_dicts:
        count = len(found["pred_scores"])
        assert found["pred_boxes"].shape == (count, 7)
        assert found["pred_labels"].shape == (count,)
    assert list(recall_dict) == ["gt", "roi_0.3", "roi_0.5", "rcnn_0.3", "rcnn_0.5"]
    assert recall_dict["gt"] == 4


def test_the_batch_is_filled_in_place_and_its_labels_are_left_alone() -> None:
    given = batch()
    boxes = given["gt_boxes"].clone()
    small_model().train()(given)
    assert given["gt_boxes"].equal(boxes)
    assert given["spatial_features_2d"].shape == (2, 16, 16, 16)
    assert "batch_box_preds" not in given


def test_boxes_are_predicted_in_training_if_configured() -> None:
    config = model_config()
    config["DENSE_HEAD"]["PREDICT_BOXES_WHEN_TRAINING"] = True
    given = batch()
    small_model(config).train()(given)
    assert given["batch_box_preds"].shape == (2, 16 * 16 * 4, 7)


def test_a_few_steps_of_training_find_the_boxes() -> None:
    config = model_config()
    for section in ("VFE", "BACKBONE_2D"):
        config[section]["BN_MOMENTUM"] = 0.1
    model = small_model(config).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(120):
        optimizer.zero_grad()
        model(batch())[0]["loss"].backward()
        optimizer.step()
    _, recall_dict = model.eval()(batch())
    assert recall_dict["rcnn_0.5"] == recall_dict["gt"] == 4


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("pillars", "boxes"),
    [((30, 0), True), ((0, 30), True), ((30, 20), False), ((1,), True), ((0,), True), ((0, 0), False)],
)
def test_samples_can_be_empty_and_unlabelled(pillars: tuple[int, ...], boxes: bool, training: bool) -> None:
    model, given = small_model().train(training), batch(pillars, boxes)
    result = model(given)
    if training:
        result[0]["loss"].backward()
        assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    else:
        assert len(result[0]) == len(pillars)
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


def test_training_without_labels_is_an_error() -> None:
    given = batch()
    del given["gt_boxes"]
    with pytest.raises(DataError, match="needs gt_boxes to train"):
        small_model().train()(given)


def test_evaluation_needs_no_labels() -> None:
    given = batch()
    del given["gt_boxes"]
    pred_dicts, recall_dict = small_model().eval()(given)
    assert len(pred_dicts) == 2
    assert recall_dict == {}


def test_a_batch_without_voxels_is_an_error_that_names_them() -> None:
    with pytest.raises(DataError, match=r"vfe \(PillarVFE\) reads voxels.*has only points"):
        small_model()(
            {"points": torch.zeros(5, 5), "batch_size": 1, "voxel_coords": 0, "voxel_num_points": 0}
        )


def test_a_detector_without_a_loss_cannot_train() -> None:
    config = model_config()
    for section in ("DENSE_HEAD", "POST_PROCESSING"):
        del config[section]
    with pytest.raises(ConfigError, match="requires a head with a loss"):
        small_model(config).train()(batch())


def test_copies_and_pickles_can_be_taken_after_a_training_forward() -> None:
    model = small_model().train()
    model(batch())
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin.dense_head.forward_ret_dict == {}
        assert twin.train()(batch())[1] == model(batch())[1]


def test_the_global_step_counts_and_is_part_of_the_state() -> None:
    model = small_model()
    model.update_global_step()
    assert model.state_dict()["global_step"].tolist() == [1]
    assert model.mode == "TRAIN"


def test_outputs_do_not_depend_on_other_samples() -> None:
    model, both = small_model().eval(), batch((40, 30))
    first = both["voxel_coords"][:, 0] == 0
    keys = ("voxels", "voxel_coords", "voxel_num_points")
    alone = {key: both[key][first] for key in keys} | {"batch_size": 1}
    model(both)
    model(alone)
    torch.testing.assert_close(both["batch_box_preds"][:1], alone["batch_box_preds"])


def test_losses_count_in_float32_under_autocast() -> None:
    model = small_model().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ret_dict, tb_dict, _ = model(batch())
    assert model.dense_head.forward_ret_dict["cls_preds"].dtype == torch.bfloat16
    assert ret_dict["loss"].dtype == torch.float32
    ret_dict["loss"].backward()
    plain = small_model().train()(batch())[1]
    assert tb_dict == pytest.approx(plain, rel=0.05)


def test_predictions_are_float32_under_autocast() -> None:
    given = batch()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        small_model().eval()(given)
    assert given["batch_box_preds"].dtype == given["batch_cls_preds"].dtype == torch.float32


def on_gpu(given: dict[str, Any]) -> dict[str, Any]:
    load_data_to_gpu(given, "cuda")
    return given


@needs_cuda
@pytest.mark.cuda
def test_a_gpu_gives_the_numbers_of_the_cpu() -> None:
    model, twin = small_model().train(), small_model().train().cuda()
    loss, on_cuda = model(batch())[1], twin(on_gpu(batch()))[1]
    assert on_cuda == pytest.approx(loss, rel=1e-3)
    for key in ("box_cls_labels", "box_reg_targets"):
        found = twin.dense_head.forward_ret_dict[key].cpu()
        torch.testing.assert_close(found, model.dense_head.forward_ret_dict[key])


@needs_cuda
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_gpu_trains_and_detects_under_autocast(dtype: torch.dtype) -> None:
    model = small_model().cuda()
    with torch.autocast("cuda", dtype=dtype):
        loss = model.train()(on_gpu(batch()))[0]["loss"]
        pred_dicts, _ = model.eval()(on_gpu(batch((20, 0))))
    loss.backward()
    assert loss.dtype == torch.float32
    assert len(pred_dicts) == 2
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
