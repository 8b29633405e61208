"""The variants of a step: what must agree agrees, and freezing never costs more."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from bench_toys import small_cfg, subject, toy_contenders

from pcdet_freeze.bench import BUILT, RandomScenes, build_contenders
from pcdet_freeze.bench.costs.certificate_cost import time_certificate
from pcdet_freeze.bench.costs.freeze_overhead import measure_freeze_overhead
from pcdet_freeze.bench.steps import compare_steps
from pcdet_freeze.bench.timing import Spread, interleave, ratios, threads
from pcdet_freeze.errors import ConfigError, FreezeError

EXACT = ("flops", "saved_bytes", "peak_bytes", "checkpoint_bytes", "optimizer_bytes")


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, Any]]:
    """The variants of the small PointPillar that need no compiler, each with one timed round."""
    cfg = small_cfg()
    model, batch = subject(cfg)
    made = compare_steps(
        build_contenders(model, cfg, batch, [name for name in BUILT if name != "compile"]), rounds=1
    )
    return {row["variant"]: row for row in made}


@pytest.mark.parametrize("figure", ["flops", "peak_bytes"])
def test_exact_needs_at_most_what_requires_grad_needs_and_that_at_most_nothing_frozen(
    rows: dict[str, dict[str, Any]], figure: str
) -> None:
    assert rows["exact"][figure] <= rows["requires_grad"][figure] < rows["none"][figure]


def test_exact_saves_what_requires_grad_saves_and_the_weights_of_the_head_side_by_side(
    rows: dict[str, dict[str, Any]],
) -> None:
    head = subject(small_cfg())[0].dense_head
    weights = sum(conv.weight.numel() for conv in (head.conv_cls, head.conv_box, head.conv_dir_cls))
    assert rows["contiguous"]["saved_bytes"] == rows["requires_grad"]["saved_bytes"] + 4 * weights
    assert rows["contiguous"]["saved_bytes"] < rows["none"]["saved_bytes"]


def test_channels_last_maps_save_the_outputs_of_the_deblocks_once(rows: dict[str, dict[str, Any]]) -> None:
    channels, cells = sum(small_cfg().MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS), 2 * 16 * 16
    outputs, statistics = 4 * channels * cells, 4 * 2 * channels
    saved = {name: rows[name]["saved_bytes"] for name in ("exact", "contiguous", "unfrozen", "none")}
    # contiguous maps are saved behind each ReLU, and concatenated; torch's norm saves two numbers a channel
    assert saved["contiguous"] - saved["exact"] == outputs + statistics
    assert saved["unfrozen"] < saved["none"] - outputs
    assert rows["unfrozen"]["loss"] == pytest.approx(rows["none"]["loss"], rel=1e-6)
    assert rows["unfrozen"]["flops"] == rows["none_ragged"]["flops"]


def test_norm_layers_locked_in_eval_mode_alone_save_no_flops(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["bn_only"]["flops"] == rows["none"]["flops"]
    assert rows["bn_only"]["trainable"] == rows["none"]["trainable"]


def test_variants_with_the_same_norm_layers_have_the_same_first_loss(rows: dict[str, dict[str, Any]]) -> None:
    assert rows["none"]["loss"] == rows["requires_grad"]["loss"]
    assert rows["bn_only"]["loss"] == pytest.approx(rows["exact"]["loss"], rel=1e-6)


def test_an_unfrozen_step_without_padding_has_the_same_loss_and_needs_less(rows: dict[str, Any]) -> None:
    none, ragged = rows["none"], rows["none_ragged"]
    assert ragged["loss"] == pytest.approx(none["loss"], rel=1e-5)
    assert ragged["trainable"] == none["trainable"]
    assert all(ragged[figure] < none[figure] for figure in ("flops", "saved_bytes", "peak_bytes"))


def test_every_ratio_is_given_against_the_step_without_padding_too(rows: dict[str, Any]) -> None:
    ragged = rows["none_ragged"]
    for row in rows.values():
        ratio = row["to_ragged"]
        assert ratio["saved_bytes_ratio"] == row["saved_bytes"] / ragged["saved_bytes"]
        assert ratio["checkpoint_ratio"] == row["checkpoint_bytes"] / ragged["checkpoint_bytes"]
        assert ratio["time_ratio"] == row["seconds"] / ragged["seconds"]


def test_exact_figures_are_the_same_on_every_run(rows: dict[str, dict[str, Any]]) -> None:
    cfg = small_cfg()
    model, batch = subject(cfg)
    again = compare_steps(build_contenders(model, cfg, batch, ["exact"]), rounds=1)[1]
    assert [again[key] for key in EXACT[:3]] == [rows["exact"][key] for key in EXACT[:3]]
    assert again["loss"] == rows["exact"]["loss"]


def test_every_ratio_is_the_figure_against_nothing_frozen(rows: dict[str, dict[str, Any]]) -> None:
    for row in rows.values():
        assert row["flops_ratio"] == row["flops"] / rows["none"]["flops"]
        assert row["peak_memory_ratio"] == row["peak_bytes"] / rows["none"]["peak_bytes"]
        assert row["rounds"] == 1 and row["seconds"] > 0


def test_a_step_leaves_the_model_and_the_batch_of_the_others_alone() -> None:
    cfg = small_cfg()
    model, batch = subject(cfg)
    before, keys = copy.deepcopy(model.state_dict()), set(batch)
    values = {key: value.clone() for key, value in batch.items() if torch.is_tensor(value)}
    none, exact = build_contenders(model, cfg, batch, ["exact"])
    none.step()
    exact.step()
    assert set(batch) == keys and all(torch.equal(batch[key], values[key]) for key in values)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(
        hasattr(parameter, "grad") and parameter.grad is not None for parameter in model.parameters()
    )


def test_exact_leaves_its_frozen_part_to_the_bit_and_requires_grad_does_not() -> None:
    made = toy_contenders("requires_grad", "exact")
    moved: dict[str, set[str]] = {}
    for name, contender in made.items():
        state = contender.trainer.model.vfe.state_dict()
        start = copy.deepcopy(state)
        contender.step()
        moved[name] = {key for key, value in state.items() if not torch.equal(value, start[key])}
    assert moved["exact"] == set()
    assert moved["requires_grad"] == {"1.running_mean", "1.running_var", "1.num_batches_tracked"}


def test_the_variant_none_always_comes_first() -> None:
    assert list(toy_contenders("exact", "bn_only", "exact")) == ["none", "exact", "bn_only"]


def test_unknown_variants_are_an_error_that_lists_all_of_them() -> None:
    with pytest.raises(ConfigError, match=r"got 'fast', 'faster'") as error:
        toy_contenders("fast", "cached", "faster")
    assert all(name in str(error.value) for name in BUILT)


def test_f7_the_cached_variant_computes_the_suffix_alone_with_the_loss_of_exact(
    rows: dict[str, dict[str, Any]],
) -> None:
    assert rows["cached"]["loss"] == rows["exact"]["loss"]
    assert rows["cached"]["saved_bytes"] == rows["exact"]["saved_bytes"]
    assert rows["cached"]["flops"] < 0.9 * rows["exact"]["flops"]


def test_a_list_is_needed_to_freeze_anything() -> None:
    cfg = small_cfg()
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = []
    model, batch = subject(cfg)
    with pytest.raises(ConfigError, match="--freeze"):
        build_contenders(model, cfg, batch, ["exact"])
    assert [one.name for one in build_contenders(model, cfg, batch, ["none"])] == ["none"]


def test_an_unknown_name_is_the_freeze_error() -> None:
    cfg = small_cfg()
    cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK = ["backbone"]
    model, batch = subject(cfg)
    with pytest.raises(FreezeError, match="backbone_2d"):
        build_contenders(model, cfg, batch, ["exact"])


def test_random_scenes_are_a_function_of_seed_and_index_and_lie_in_the_range() -> None:
    cfg = small_cfg()
    one, two = (RandomScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES, sizes={"Car": (4, 2, 1)}) for _ in range(2))
    a, b = one.load_sample(3), two.load_sample(3)
    assert all((a[key] == b[key]).all() for key in ("points", "gt_boxes", "gt_names"))
    low, high = one.point_cloud_range[:3], one.point_cloud_range[3:]
    assert a["points"].shape == (500, 4)
    assert ((a["points"][:, :3] >= low) & (a["points"][:, :3] <= high)).all()
    assert (a["gt_boxes"][a["gt_names"] == "Car", 3:6] == [4, 2, 1]).all()


def test_the_overhead_is_measured_against_a_model_in_the_same_state() -> None:
    cfg = small_cfg()
    model, batch = subject(cfg)
    by_hand, frozen, overhead = measure_freeze_overhead(model, cfg, batch, rounds=1)
    assert [row["variant"] for row in (by_hand, frozen, overhead)] == ["by hand", "frozen", "overhead"]
    assert by_hand["loss"] == frozen["loss"]
    parts = ("train_call_seconds", "norm_layers_seconds", "pre_hook_seconds")
    assert overhead["seconds"] == pytest.approx(sum(overhead[part] for part in parts))


def test_the_certificate_is_timed_on_at_least_as_many_parameters_as_asked_for() -> None:
    (row,) = time_certificate(rounds=1, parameters=1_000_000)
    assert row["parameters"] >= 1_000_000 and row["seconds"] > 0


def test_rounds_are_interleaved_and_begin_with_another_task_each_time() -> None:
    calls: list[str] = []
    tasks = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    seconds = interleave(tasks, 2, torch.device("cpu"))
    assert "".join(calls) == "abcbca"
    assert [len(values) for values in seconds.values()] == [2, 2, 2]


def test_ratios_are_taken_round_by_round() -> None:
    seconds = {"none": [1.0, 10.0, 1.0], "exact": [0.5, 5.0, 0.25]}
    assert ratios(seconds, "exact", "none") == Spread(0.5, 0.375, 0.5)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)


def test_the_number_of_threads_is_restored() -> None:
    before = torch.get_num_threads()
    with threads(1):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
