"""SegmentHead: predictions, loss, and invalid labels."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from task_cases import SEMANTIC, bare, task_batch, task_config, task_model, unlabelled, without_detection

from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation import MetricContext
from pcdet_freeze.evaluation.segmentation import BevSegmentationMetric
from pcdet_freeze.models.task_heads.losses import lovasz_softmax
from pcdet_freeze.models.task_heads.segment_head import cell_means
from pcdet_freeze.ops.bev_cells import cell_majority, cells_of


def head_config(**settings: Any) -> dict[str, Any]:
    config = task_config("segment", detect=False)
    config["SEGMENT_HEAD"] |= settings
    return config


def model_of(**settings: Any) -> Any:
    return task_model(config=head_config(**settings))


def loss_of(model: Any, batch_dict: dict[str, Any]) -> torch.Tensor:
    return model.train()(dict(batch_dict))[0]["loss"]


def test_every_point_gets_a_class_in_the_order_of_the_batch() -> None:
    given = task_batch()
    found, _ = model_of().eval()(given)
    together = torch.cat([each["pred_point_labels"] for each in found])
    assert together.dtype == torch.int64
    assert torch.equal(together, given["point_logits"].argmax(dim=1))
    assert [len(each["pred_point_labels"]) for each in found] == given["points"][
        :, 0
    ].long().bincount().tolist()


def test_a_point_sees_the_map_at_its_own_cell() -> None:
    limits = model_of().segment_head.limits
    points = torch.tensor(
        [[0, 0.1, -7.9, 0, 0], [1, 15.9, 7.9, 0, 0], [1, 16.0, 8.0, 0, 0], [0, 4.6, 0, 0, 0]]
    )
    flat = cells_of(points, limits, (32, 32))
    assert flat.tolist() == [0, 2 * 32 * 32 - 1, 2 * 32 * 32 - 1, 16 * 32 + 9]


def test_point_features_include_the_offset_from_the_cell_mean() -> None:
    columns = torch.tensor([[1.0, 0.5], [3.0, 0.25], [7.0, 1.0]])
    wanted = torch.tensor([[2.0, 0.375], [2.0, 0.375], [7.0, 1.0]])
    assert torch.equal(cell_means(columns, torch.tensor([4, 4, 1]), 5), wanted)
    shuffled = torch.randperm(500)
    many, cells = torch.randn(500, 3), torch.randint(0, 20, (500,))
    means = cell_means(many[shuffled], cells[shuffled], 20)
    assert torch.equal(cell_means(many, cells, 20)[shuffled], means)


def test_cells_get_a_class_if_configured() -> None:
    found, _ = model_of(CELL_LABELS=True).eval()(task_batch())
    assert found[0]["pred_bev_labels"].shape == (32, 32)
    assert "pred_bev_labels" not in model_of().eval()(task_batch())[0][0]


def test_a_cells_label_is_that_of_most_of_its_points() -> None:
    cells = torch.tensor([0, 0, 0, 2, 2, 3])
    labels = torch.tensor([1, 1, 2, 255, 0, 255])
    assert cell_majority(cells, labels, 3, 4).tolist() == [1, 255, 0, 255]


def test_the_metric_of_cells_has_the_truth_that_training_has() -> None:
    model, given = model_of(CELL_LABELS=True), task_batch()
    loss_of(model, given)
    wanted = model.segment_head.forward_ret_dict["cell_labels"].view(2, 32, 32)
    kind = BevSegmentationMetric(MetricContext(SEMANTIC, model.segment_head.limits))
    for sample, true in enumerate(wanted):
        rows = given["points"][:, 0] == sample
        found = {"pred_bev_labels": true.clamp(max=2).numpy(), "points": given["points"][rows].numpy()}
        confusion = kind.count(given["point_labels"][rows].numpy(), found)["confusion"]
        assert confusion.trace() == confusion.sum() == (true != 255).sum() > 0


def test_the_loss_is_weighted_cross_entropy_and_lovasz_softmax_of_each_frame() -> None:
    weights = [1.0, 2.0, 0.5]
    model = model_of(LOSS_CONFIG={"CLASS_WEIGHTS": weights, "LOVASZ_WEIGHT": 0.3})
    given = task_batch()
    loss = loss_of(model, given)
    logits = model.segment_head.forward_ret_dict["logits"]
    entropy = torch.nn.functional.cross_entropy(logits, given["point_labels"], torch.tensor(weights))
    chances, labels, frame = logits.softmax(dim=1), given["point_labels"], given["points"][:, 0]
    jaccard = [lovasz_softmax(chances[frame == f], labels[frame == f]) for f in (0, 1)]
    assert loss.item() == pytest.approx((entropy + 0.3 * sum(jaccard) / 2).item())


def test_lovasz_softmax_of_certain_answers_is_the_mean_jaccard_loss() -> None:
    targets = torch.tensor([0, 0, 1, 1, 1, 2])
    guessed = torch.tensor([0, 1, 1, 1, 2, 2])
    loss = lovasz_softmax(torch.eye(3, dtype=torch.float64)[guessed], targets)
    assert loss.item() == pytest.approx(1 - (1 / 2 + 2 / 4 + 1 / 2) / 3)


def test_lovasz_softmax_is_that_of_the_papers_algorithm() -> None:
    torch.manual_seed(0)
    chances, targets = torch.rand(40, 3, dtype=torch.float64).softmax(dim=1), torch.randint(0, 2, (40,))
    losses = []
    for c in (0, 1):
        wanted = targets == c
        errors = torch.where(wanted, 1 - chances[:, c], chances[:, c])
        order, last, total = errors.argsort(descending=True), 0.0, 0.0
        for n in range(1, 41):
            wrong = order[:n]
            jaccard = 1 - (wanted.sum() - wanted[wrong].sum()) / (wanted.sum() + (~wanted[wrong]).sum())
            total += float(errors[order[n - 1]] * (jaccard - last))
            last = float(jaccard)
        losses.append(total)
    assert lovasz_softmax(chances, targets).item() == pytest.approx(sum(losses) / 2)


def test_an_ignored_point_does_not_count() -> None:
    model, given = model_of(), task_batch()
    given["point_labels"][::2] = 255
    loss_of(model, given)
    state = model.segment_head.forward_ret_dict
    state["logits"][::2] = math.nan
    assert math.isfinite(model.segment_head.get_loss()[0].item())


def test_a_frame_without_labels_does_not_count() -> None:
    given = unlabelled(task_batch(), "point_labels", 1)
    given["point_labels"] = torch.where(given["points"][:, 0] == 1, 77, given["point_labels"])
    model = model_of()
    loss_of(model, given)
    labels = model.segment_head.forward_ret_dict["labels"]
    assert (labels == 255).sum() == (given["points"][:, 0] == 1).sum()


def test_without_any_label_the_loss_is_zero_and_still_reaches_everything() -> None:
    model = model_of(CELL_LABELS=True)
    loss = loss_of(model, bare(task_batch(), "point_labels"))
    loss.backward()
    assert loss == 0
    assert all(p.grad is not None and not p.grad.any() for p in without_detection(model))


def test_training_uses_at_most_max_points_of_each_frame() -> None:
    model, given = model_of(MAX_POINTS=40), task_batch()
    loss_of(model, given)
    assert model.segment_head.forward_ret_dict["frames"].bincount().tolist() == [40, 40]
    model.eval()(given)
    assert len(given["point_logits"]) == len(given["points"])


def test_an_empty_frame_gets_no_classes() -> None:
    found, _ = model_of().eval()(task_batch((40, 0)))
    assert len(found[1]["pred_point_labels"]) == 0
    assert len(model_of().eval()(task_batch((0,)))[0][0]["pred_point_labels"]) == 0


def test_outputs_do_not_depend_on_other_samples() -> None:
    model, both = model_of().eval(), task_batch()
    alone = {**task_batch((60,)), "points": both["points"][both["points"][:, 0] == 0]}
    for key in ("voxels", "voxel_coords", "voxel_num_points"):
        alone[key] = both[key][both["voxel_coords"][:, 0] == 0]
    assert torch.equal(model(both)[0][0]["pred_point_labels"], model(alone)[0][0]["pred_point_labels"])


def test_copies_can_be_taken_after_a_training_forward() -> None:
    model = model_of()
    loss_of(model, task_batch())
    assert copy.deepcopy(model).segment_head.forward_ret_dict == {}


@pytest.mark.parametrize("label", [len(SEMANTIC), -1, 254])
def test_a_label_out_of_range_is_an_error_that_names_it_and_its_frame(label: int) -> None:
    given = task_batch() | {"frame_id": ["a7", "b9"]}
    given["point_labels"][3] = label
    with pytest.raises(
        DataError, match=rf"must be 0..2 or 255 \(ignore\); got \[{label}\] in the frames a7:"
    ):
        loss_of(model_of(), given)


def test_labels_of_which_none_counts_are_an_error() -> None:
    given = task_batch()
    given["point_labels"][:] = 255
    with pytest.raises(
        DataError, match=r"SegmentHead.*all point_labels are 255 \(ignore\) in the frames 0, 1"
    ):
        loss_of(model_of(), given)


def test_a_batch_without_label_keys_is_an_error() -> None:
    given = task_batch()
    del given["point_labels"]
    with pytest.raises(DataError, match=r"needs point_labels to train.*[Ff]reeze the head"):
        loss_of(model_of(), given)


def test_labels_of_another_length_are_an_error() -> None:
    given = task_batch()
    given["point_labels"] = given["point_labels"][:-1]
    with pytest.raises(DataError, match="needs one label per point"):
        loss_of(model_of(), given)


def test_training_on_an_empty_batch_is_an_error() -> None:
    with pytest.raises(DataError, match=r"at least two points.* the batch has 0"):
        loss_of(model_of(), task_batch((0, 0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"NUM_CLASS": 5}, r"NUM_CLASS must be the number of .* 3 \(road, car, other\); got 5"),
        ({"LOSS_CONFIG": {"CLASS_WEIGHTS": [1.0]}}, "CLASS_WEIGHTS must have 3 entries"),
        ({"LOSS_CONFIG": {"CE_WEIGHT": -1.0}}, "CE_WEIGHT must be a number, 0 or more; got -1.0"),
        ({"POINT_FILTERS": []}, "POINT_FILTERS must be a list of one width or more"),
        ({"MAX_POINTS": 1}, "MAX_POINTS must be a whole number, 2 or more; got 1"),
    ],
)
def test_a_fault_in_the_settings_is_one_clear_error(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model_of(**settings)
