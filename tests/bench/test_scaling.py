"""What --what scaling varies."""

from __future__ import annotations

from typing import Any

import pytest
from bench_toys import small_cfg, subject

from pcdet_freeze.bench import measure_scaling
from pcdet_freeze.bench.scaling import parts_of
from pcdet_freeze.freezing import is_frozen

BLOCKS = [f"backbone_2d.blocks.{i}" for i in range(3)]


@pytest.fixture(scope="module")
def found() -> tuple[list[dict[str, Any]], list[tuple[int, int, int]]]:
    """Rows, and (points, boxes, frames) of every batch that was built."""
    built: list[tuple[int, int, int]] = []

    def build(cfg: Any, frames: int) -> Any:
        model, batch = subject(cfg, frames)
        built.append((len(batch["points"]) // frames, batch["gt_boxes"].shape[1], frames))
        return model, batch

    return measure_scaling(small_cfg(), build, 2, rounds=1), built


def test_each_axis_is_varied_by_itself(found: Any) -> None:
    rows, built = found
    values = {axis: sorted({r["value"] for r in rows if r["axis"] == axis}) for axis in axes(rows)}
    assert values == {
        "frozen": [0, 1, 2, 3, 4],
        "points": [125, 250, 500, 1000],
        "boxes": [1, 3, 12],
        "frames": [1, 2, 4],
    }
    assert [points for points, _, _ in built[1:5]] == [125, 250, 500, 1000]
    assert [frames for _, _, frames in built[-3:]] == [1, 2, 4]
    assert built[7][1] == 12


def axes(rows: Any) -> list[str]:
    return list(dict.fromkeys(row["axis"] for row in rows))


def test_the_list_grows_part_by_part(found: Any) -> None:
    rows = [row for row in found[0] if row["axis"] == "frozen"]
    assert [row["list"] for row in rows] == [["vfe", *BLOCKS][:count] for count in range(5)]
    assert [row["variant"] for row in rows] == ["none", *["exact"] * 4]
    model, _ = subject(small_cfg())
    sizes = [sum(p.numel() for p in model.get_submodule(part).parameters()) for part in ("vfe", *BLOCKS)]
    everything = sum(p.numel() for p in model.parameters())
    assert [row["trainable"] for row in rows] == [everything - sum(sizes[:count]) for count in range(5)]


def test_ratios_are_to_nothing_frozen_at_the_same_value(found: Any) -> None:
    for none, exact in zip(found[0][5::2], found[0][6::2], strict=True):
        assert (none["axis"], none["value"]) == (exact["axis"], exact["value"])
        assert none["time_ratio"] == 1 and exact["time_ratio"] == exact["seconds"] / none["seconds"]


def test_parts_are_found_without_freezing_the_model() -> None:
    model, _ = subject(small_cfg())
    assert parts_of(model, small_cfg()) == ["vfe", *BLOCKS]
    assert not is_frozen(model.vfe)
