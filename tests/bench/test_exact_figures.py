"""Exact figures against what paper and pencil give."""

from __future__ import annotations

import pytest
import torch
from bench_toys import IN, MIDDLE, OUT, ROWS, toy_contenders

from pcdet_freeze.bench import exact_figures
from pcdet_freeze.bench.steps import compare_steps

FIRST, LAST = 2 * ROWS * IN * MIDDLE, 2 * ROWS * MIDDLE * OUT
FLOAT = 4

# the first layer's input needs no gradient; the last layer's does unless everything before it is frozen
FLOPS = {
    "none": 2 * FIRST + 3 * LAST,
    "bn_only": 2 * FIRST + 3 * LAST,
    "requires_grad": FIRST + 2 * LAST,
    "exact": FIRST + 2 * LAST,
}
MAP = ROWS * MIDDLE * FLOAT
# a live norm layer keeps its input, mean and inverse deviation; the last layer keeps its input
SAVED = {"none": 2 * MAP + 2 * MIDDLE * FLOAT, "bn_only": 2 * MAP, "requires_grad": MAP, "exact": MAP}


@pytest.mark.parametrize("name", FLOPS)
def test_flops_of_a_toy_are_those_of_its_matrix_products(name: str) -> None:
    contender = toy_contenders(name)[name]
    assert exact_figures.count_flops(contender.step) == FLOPS[name]


@pytest.mark.parametrize("name", SAVED)
def test_saved_bytes_of_a_toy_are_those_of_the_maps_that_its_layers_keep(name: str) -> None:
    contender = toy_contenders(name)[name]
    model = contender.trainer.model
    fixed = [*model.parameters(), *model.buffers(), *contender.batch.values()]
    assert exact_figures.count_saved_bytes(contender.step, fixed) == SAVED[name]


def test_a_storage_that_several_nodes_save_counts_once() -> None:
    value = torch.ones(10, requires_grad=True)

    def step() -> None:
        square = value * 2
        ((square * square).sum() + (square.view(2, 5) ** 3).sum()).backward()

    assert exact_figures.count_saved_bytes(step, [value]) == 10 * FLOAT


def test_what_a_dead_part_of_the_graph_had_saved_does_not_count() -> None:
    value = torch.ones(10, requires_grad=True)

    def step() -> None:
        value.exp()
        (value.exp()).sum().backward()

    assert exact_figures.count_saved_bytes(step, [value]) == 10 * FLOAT


def test_saving_is_counted_without_a_backward_pass_too() -> None:
    value = torch.ones(10, requires_grad=True)
    kept = []
    assert exact_figures.count_saved_bytes(lambda: kept.append(value.exp()), [value]) == 10 * FLOAT


def test_the_count_changes_no_gradient() -> None:
    plain, counted = toy_contenders("none")["none"], toy_contenders("none")["none"]
    plain.step()
    exact_figures.count_saved_bytes(counted.step)
    for a, b in zip(plain.trainer.model.parameters(), counted.trainer.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_frozen_parameters_have_no_optimizer_state_in_the_checkpoint() -> None:
    rows = {row["variant"]: row for row in compare_steps([*toy_contenders("exact").values()], rounds=1)}
    head = MIDDLE * OUT + OUT
    steps = 2 * FLOAT
    assert rows["exact"]["optimizer_bytes"] == 2 * head * FLOAT + steps
    assert rows["exact"]["trainable"] == head
    assert rows["exact"]["optimizer_ratio"] < rows["none"]["optimizer_ratio"] == 1
