"""MODEL.LOSS_NORMALIZATION: several ranks, or micro-batches, give the gradient of one large batch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from rank_cases import (
    LABELS,
    SPLITS,
    four_frames,
    frames_of,
    gradients,
    held,
    three_tasks,
    whole_error,
    worst,
)
from task_cases import task_batch, task_config, task_model
from two_processes import torchrun, worker

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.loss_normalization import Normalizers
from pcdet_freeze.models.task_heads.losses import lovasz_softmax, lovasz_softmax_sum

HEADS = {"gt_boxes": "dense_head", "point_labels": "segment_head", "lane_map": "lane_head"}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("loss_normalization_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    results: dict[str, Any] = torch.load(out / "errors.pt")
    return results


@pytest.mark.slow
def test_two_ranks_give_the_gradient_of_one_with_all_frames(ranks: dict[str, Any]) -> None:
    errors = {name: result["error"] for name, result in ranks.items() if name != "local"}
    assert len(errors) == len(SPLITS) * 5 and max(errors.values()) < 1e-5, errors


@pytest.mark.slow
def test_the_mean_of_the_losses_of_two_ranks_is_the_loss_of_one(ranks: dict[str, Any]) -> None:
    for name, result in ranks.items():
        if name != "local":
            assert sum(result["losses"]) / 2 == pytest.approx(result["loss"], rel=1e-5), name


@pytest.mark.slow
def test_with_local_normalization_they_give_another_gradient(ranks: dict[str, Any]) -> None:
    assert ranks["local"]["error"] > 0.01


def micro_batches(model: Any, batch: dict[str, Any], split: Any) -> dict[str, torch.Tensor]:
    """Mean of the gradients of the parts of ``batch``, each divided by the counts of all."""
    shared, parts = model.loss_normalization, [frames_of(batch, frames) for frames in split]
    shared.micro_batches, totals = len(parts), []
    for part in parts:
        with torch.no_grad():
            model.forward(dict(part))
        totals.append(shared.count(model.heads_with_loss()))
    shared.known = torch.stack(totals).sum(dim=0)
    model.zero_grad()
    for part in parts:
        (model(dict(part))[0]["loss"] / len(parts)).backward()
    return gradients(model, model)


@pytest.mark.parametrize("missing", ["", *LABELS])
def test_micro_batches_give_the_gradient_of_their_union(missing: str) -> None:
    whole, model = four_frames(missing), held(three_tasks())
    alone = copy.deepcopy(model)
    alone(frames_of(whole, (0, 1, 2, 3)))[0]["loss"].backward()
    found, wanted = micro_batches(model, whole, SPLITS["three and one"]), gradients(alone, alone)
    assert whole_error(found, wanted) < 1e-6 and worst(found, wanted) < 1e-5


@pytest.mark.parametrize("missing", LABELS)
def test_frames_without_labels_give_the_head_exactly_zero_gradient(missing: str) -> None:
    model = held(three_tasks())
    model.loss_normalization.micro_batches = 2
    model.loss_normalization.known = torch.full((10,), 7.0)
    model(frames_of(four_frames(missing), (2, 3)))[0]["loss"].backward()
    found = {name: grad for name, grad in gradients(model, model).items() if name.startswith(HEADS[missing])}
    assert found and not any(grad.any() for name, grad in found.items() if "loss_scale" not in name)


def test_one_process_computes_nothing_and_gives_the_same_loss_with_both_kinds() -> None:
    losses = []
    for kind in ("global", "local"):
        model = three_tasks(LOSS_NORMALIZATION=kind).train()
        losses.append(model(four_frames())[0]["loss"])
        assert all("normalizers" not in head.forward_ret_dict for head in model.heads_with_loss().values())
    assert torch.equal(*losses)


def kinds(**keys: Any) -> Any:
    return task_model(config=task_config("segment", "lane") | keys).loss_normalization.kinds


def test_task_heads_are_global_and_dense_heads_local_by_default() -> None:
    found = kinds()
    assert (found["dense_head"], found["segment_head"], found["lane_head"]) == ("local", "global", "global")


def test_a_kind_can_be_chosen_for_all_heads_or_for_some() -> None:
    assert set(kinds(LOSS_NORMALIZATION="local").values()) == {"local"}
    found = kinds(LOSS_NORMALIZATION={"dense_head": "global"})
    assert (found["dense_head"], found["segment_head"]) == ("global", "global")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("mean", "LOSS_NORMALIZATION must be .*global.*local.*; got 'mean'"),
        ({"dense_head": "mean"}, "LOSS_NORMALIZATION.dense_head must be .*global.*local.*; got 'mean'"),
        ({"lane_heads": "local"}, "LOSS_NORMALIZATION.lane_heads is not a head.*lane_head"),
    ],
)
def test_an_unknown_kind_or_head_is_an_error(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        kinds(LOSS_NORMALIZATION=value)


def test_a_copy_of_a_model_takes_no_part_in_collectives() -> None:
    model = three_tasks()
    assert model.loss_normalization.across_ranks
    assert not copy.deepcopy(model).loss_normalization.across_ranks


def test_a_shared_value_is_that_of_the_labelled_frames_and_keeps_the_gradient() -> None:
    counts, own = Normalizers(torch.tensor([4.0, 6.0]), 2), torch.tensor(2.0, requires_grad=True)
    loss = counts.share(counts.summed(own, 1) ** 2, 1)
    assert loss.item() == pytest.approx(36 / 4 * 2)
    loss.backward()
    assert own.grad is not None and own.grad.item() == pytest.approx(2 * 6 * 2)


def test_lovasz_softmax_of_several_frames_is_the_sum_over_them() -> None:
    torch.manual_seed(0)
    chances, targets = torch.rand(60, 4).softmax(dim=1).requires_grad_(), torch.randint(0, 3, (60,))
    frames = torch.randint(0, 3, (60,)) + 1  # frame 0 has no row
    found = lovasz_softmax_sum(chances, targets, frames, 4)
    wanted = sum(lovasz_softmax(chances[frames == f], targets[frames == f]) for f in (1, 2, 3))
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    pair = [torch.autograd.grad(loss, chances)[0] for loss in (found, wanted)]
    torch.testing.assert_close(*pair)


def test_max_points_is_a_number_of_each_frame(tmp_path: Path) -> None:
    config = task_config("segment", detect=False)
    config["SEGMENT_HEAD"]["MAX_POINTS"] = 50
    model, whole = task_model(config=config).train(), task_batch((60, 5, 40))
    model(dict(whole))
    chosen = model.segment_head.forward_ret_dict
    sizes = whole["points"][:, 0].long().bincount().clamp(max=50)
    assert torch.equal(chosen["frames"].bincount(), sizes)
    model(frames_of(whole, (2,)))
    alone = model.segment_head.forward_ret_dict["labels"]
    assert torch.equal(alone, chosen["labels"][chosen["frames"] == 2])
