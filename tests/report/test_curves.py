"""Curves: few points of a long series, drawn as SVG."""

from __future__ import annotations

import math
import re
from pathlib import Path

import torch
from engine_toy import toy_trainer
from html_checks import Page
from waits import PackageWaits

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.hooks.logging import LogHook, TensorboardHook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.report.curves import Series, draw
from pcdet_freeze.utils.deferred_numbers import DeferredNumbers, read_numbers


def filled(count: int, most: int = 8) -> Series:
    series = Series(most)
    for iteration in range(1, count + 1):
        series.add(iteration, torch.tensor(float(iteration)))
    return series


def test_a_short_series_keeps_every_value() -> None:
    assert filled(5).read() == [[float(i), float(i)] for i in range(1, 6)]


def test_a_long_series_keeps_few_points_with_the_mean_of_what_they_stand_for() -> None:
    points = filled(1000).read()
    assert len(points) <= 9 and points[-1][0] == 1000
    begin = 0.0
    for iteration, value in points:
        assert value == (begin + 1 + iteration) / 2
        begin = iteration


def test_values_are_read_when_the_log_reads_its_own_without_a_further_wait() -> None:
    curves = [Series() for _ in range(3)]
    with PackageWaits() as waits:
        for iteration in range(1, 51):
            for curve in curves:
                curve.add(iteration, torch.tensor(float(iteration)))
        assert waits.lines.total() == 0
        assert read_numbers([torch.tensor(7.0)]) == [7.0] and waits.lines.total() == 1
        assert [curve.read() for curve in curves] == [[[float(i), float(i)] for i in range(1, 51)]] * 3
        assert waits.lines.total() == 1


def test_a_training_with_curves_waits_as_often_as_one_without(tmp_path: Path) -> None:
    class Curves(Hook):
        series = Series()

        def after_step(self, trainer: Trainer) -> None:
            self.series.add(trainer.iteration, trainer.loss_on_device)

    def waits_of(*hooks: Hook) -> int:
        with PackageWaits() as waits:
            toy_trainer([LogHook(4), TensorboardHook(tmp_path), *hooks], epochs=20).run()
        return waits.lines.total()

    curves = Curves()
    assert waits_of(curves) == waits_of()
    assert len(curves.series.read()) == 80


def test_values_that_are_not_finite_do_not_count() -> None:
    series = Series()
    for iteration, value in enumerate([1.0, math.nan, math.inf, 3.0]):
        series.add(iteration, value)
    assert series.read() == [[0.0, 1.0], [3.0, 3.0]]


def test_deferred_numbers_keep_their_order_and_are_read_by_themselves_where_many_wait() -> None:
    numbers = DeferredNumbers(most=3)
    numbers.append(1.0)
    with PackageWaits() as waits:
        for value in (torch.tensor(2.0), 3.0, torch.tensor(4, dtype=torch.int64)):
            numbers.append(value)
        assert waits.lines.total() == 2  # one for each dtype
    assert numbers.drain() == [1.0, 2.0, 3.0, 4.0] and numbers.values() == []


def test_a_series_continues_from_a_checkpoint() -> None:
    first = filled(6)
    again = Series.from_plain(first.to_plain())
    again.add(7, 7.0)
    assert again.read() == [*first.read(), [7.0, 7.0]]
    assert Series.from_plain(None).read() == Series.from_plain({"points": 3}).read() == []


def test_a_drawing_is_valid_and_lies_within_its_frame() -> None:
    found = Page(draw("loss", {"loss": [[1, 5.0], [50, 0.5], [100, 0.05]]}, log=True))
    assert found.faults == [] and found.count("polyline") == 1
    places = next(given["points"] for name, given in found.tags if name == "polyline")
    numbers = [float(word) for word in re.findall(r"[\d.]+", places or "")]
    assert max(numbers[::2]) <= 520 and max(numbers[1::2]) <= 220 and min(numbers) >= 0
    assert numbers[1] < numbers[3] < numbers[5]  # SVG counts y downwards


def test_several_curves_are_named_and_constant_or_single_ones_can_be_drawn() -> None:
    found = Page(draw("parts", {"a": [[1, 2.0], [2, 2.0]], "b": [[1, 0.0]], "empty": []}))
    assert found.faults == [] and "a" in found.text.split() and "b" in found.text.split()
    assert found.count("circle") == 1 and draw("none", {"empty": []}) == ""


def test_a_checkpoint_has_the_stride_of_its_points_where_values_were_still_on_a_device() -> None:
    late, known = Series(most=4), Series(most=4)
    for iteration in range(1, 21):
        late.add(iteration, torch.tensor(float(iteration)))
        known.add(iteration, float(iteration))
    assert late.to_plain() == known.to_plain()
    assert late.to_plain()["stride"] == 8
