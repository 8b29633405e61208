"""The table of the stages."""

from __future__ import annotations

from pcdet_freeze.evaluation.stage_table import stage_table


def test_the_table_has_one_column_per_stage_and_a_dash_for_missing_values() -> None:
    first = {"iterations": 500, "boxes": 7, "seconds_per_iteration": {"batch": 0.51}}
    second = {"segmentation/mIoU": 61.23, "segmentation/IoU/road": 80.0, "segmentation/IoU/pole": 22.5}
    text = stage_table({"1": first, "2": second}, [("the detector", ("", "the same"))])
    rows = {line[:37].strip(): line[37:].split() for line in text.splitlines()}
    assert rows[""] == ["1", "2"]
    assert rows["iterations"] == ["500", "-"]
    assert rows["segmentation mIoU"] == ["-", "61.2"]
    assert rows["segmentation, IoU of the worst class"] == ["-", "22.5"]
    assert rows["seconds per iteration (median)"] == ["0.510", "-"]
    assert rows["the detector"] == ["the", "same"]
    assert len({len(line) for line in text.splitlines()}) == 1


def test_the_table_of_three_stages_fits_80_columns() -> None:
    titles = ("1 detection", "2 segmentation", "3 lanes", "no network")
    verdict = ("the detector's outputs, bit for bit", ["", "the same", "the same", ""])
    text = stage_table({title: {"lane/F1": 0.705} for title in titles}, [verdict])
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[1].split() == ["detection", "segmentation", "lanes", "network"]
