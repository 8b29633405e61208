"""The share of a backbone's cells that no pillar reaches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from bench_toys import small_cfg, subject
from torch import nn

from pcdet_freeze.bench import RandomScenes, make_batch, measure_cache_size, measure_empty_space
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models import build_network


def rows_with_pillars(*cells: tuple[int, int]) -> list[dict[str, Any]]:
    """The rows of the small model, on one frame whose pillars are in ``cells`` (y, x) of its 32 x 32 grid."""
    torch.manual_seed(0)
    cfg = small_cfg()
    scenes = RandomScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES)
    model, batch = (
        build_network(cfg.MODEL, len(cfg.CLASS_NAMES), scenes),
        make_batch(scenes, 1, torch.device("cpu")),
    )
    for key in ("voxels", "voxel_num_points", "voxel_coords"):
        batch[key] = batch[key][: len(cells)]
    batch["voxel_coords"][:, 2:] = torch.tensor(cells)
    return measure_empty_space(model, batch)


def test_one_pillar_reaches_the_cells_around_it_alone() -> None:
    first, *_ = rows_with_pillars((16, 16))
    size = first["cells"] // 4  # the first convolution has stride 2: it reads the pillar once
    assert 1 - first["unreached"] == pytest.approx(9 / size)


def test_the_skippable_arithmetic_is_weighted_by_the_layers() -> None:
    *blocks, whole = rows_with_pillars((16, 16), (3, 9))
    assert sum(row["of_all"] for row in blocks) == pytest.approx(1)
    expected = sum(row["of_all"] * row["arithmetic"] for row in blocks)
    assert whole["arithmetic"] == pytest.approx(expected)
    assert blocks[0]["unreached"] > 0.8 > blocks[-1]["unreached"]


def test_a_model_without_a_map_of_pillars_is_an_error() -> None:
    with pytest.raises(ConfigError, match="needs a model that scatters pillars"):
        measure_empty_space(nn.Linear(1, 1), {})


def test_every_compression_of_a_cached_frame_is_measured_and_smaller() -> None:
    cfg = small_cfg()
    model, batch = subject(cfg)
    rows = measure_cache_size(model, batch, rounds=1)
    assert {(row["dtype"], row["codec"]) for row in rows} == {
        (dtype, codec) for dtype in ("float32", "bfloat16") for codec in ("lz4", "zstd")
    }
    assert all(len(row["bytes"]) == 2 and max(row["bytes"]) < 2 * row["raw"] for row in rows)
    assert rows[0]["raw"] == 2 * rows[-1]["raw"] == 4 * 8 * (16 * 16 + 8 * 8 + 4 * 4)
