"""F7, the key: all that decides over a value is in it, and nothing else."""

from __future__ import annotations

import copy
from json import dumps
from pathlib import Path
from typing import Any

import pytest
import torch
from bench_toys import small_cfg
from cache_runs import BLOCKS, SixScenes

from pcdet_freeze.bench import make_batch
from pcdet_freeze.config import cfg_from_list
from pcdet_freeze.datasets.collate import last_sample
from pcdet_freeze.engine.prefix_cache.key import cache_key, differences, key_digest
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import Options, plan_for
from pcdet_freeze.freezing.prefix.boundary_check import find_boundary
from pcdet_freeze.models import build_network


def key_of(
    *changes: str, options: Options | None = None, dtype: str = "float32", seed: int = 0, change: Any = None
) -> dict[str, Any]:
    """The key of the small config with ``changes``; ``change`` is done to the model."""
    cfg, options = small_cfg(), options or Options()
    cfg_from_list(list(changes), cfg)
    torch.manual_seed(0)
    data = SixScenes(cfg.DATA_CONFIG, cfg.CLASS_NAMES)
    data.keep_variants(2)
    model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), data)
    if change is not None:
        with torch.no_grad():
            change(model)
    batch = make_batch(data, 2, torch.device("cpu"))
    data.seed = seed
    freeze(model, BLOCKS)
    plan = plan_for(model.train(), (batch,), None, options)
    border, _ = find_boundary(model, plan, options, batch, last_sample)
    return cache_key(model, border, plan, options, dtype, data.cache_key())


@pytest.fixture(scope="module")
def key() -> dict[str, Any]:
    return key_of()


CHANGES = {
    "frozen state": {"change": lambda model: model.vfe.pfn_layers[0].norm.running_mean.add_(1e-6)},
    "dtype": {"dtype": "bfloat16"},
    "folding": {"options": Options(fuse=False)},
    "computed in": {"options": Options(channels_last=True)},
}
CONFIGS = {
    "modules": ("MODEL.BACKBONE_2D.LAYER_NUMS", "[1, 2, 1]"),
    "config": ("MODEL.VFE.WITH_DISTANCE", "True"),
    "data": ("DATA_CONFIG.DATA_PROCESSOR.2.MAX_POINTS_PER_VOXEL", "5"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_f7_state_dtype_folding_and_precision_are_in_the_key(key: dict[str, Any], name: str) -> None:
    other = key_of(**CHANGES[name])
    assert name in [part for part in key if other[part] != key[part]]
    assert key_digest(other) != key_digest(key)


@pytest.mark.parametrize("name", CONFIGS)
def test_f7_the_config_of_the_prefix_and_of_the_data_is_in_the_key(key: dict[str, Any], name: str) -> None:
    other = key_of(*CONFIGS[name])
    assert name in [part for part in key if other[part] != key[part]]


def test_f7_device_versions_class_names_and_frames_are_in_the_key(key: dict[str, Any]) -> None:
    assert key["device"] == "cpu" and key["versions"]["torch"] == torch.__version__
    assert key["data"]["class_names"] == ["Car", "Pedestrian", "Cyclist"]
    assert len(key["data"]["frames"]) == 64 and key["data"]["rows"] == 12


def test_f7_the_seed_of_random_draws_is_in_the_key_and_that_of_none_is_not(key: dict[str, Any]) -> None:
    still = ("DATA_CONFIG.DATA_PROCESSOR.1.SHUFFLE_ENABLED.train", "False")
    assert key_of(seed=1)["data"] != key["data"]
    assert key_of(*still, seed=1) == key_of(*still, seed=2)


def test_f7_what_trains_is_not_in_the_key(key: dict[str, Any]) -> None:
    def change(model: Any) -> None:
        model.dense_head.conv_cls.weight.add_(1)
        model.backbone_2d.deblocks[0][1].running_mean.add_(1)

    assert key_of(change=change) == key
    assert key_of("MODEL.DENSE_HEAD.LOSS_CONFIG.LOSS_WEIGHTS.cls_weight", "3.0") == key


def test_f7_the_nearest_cache_is_named_by_what_differs(tmp_path: Path, key: dict[str, Any]) -> None:
    assert differences(tmp_path, key) == []
    near, far = copy.deepcopy(key), copy.deepcopy(key)
    near["versions"]["torch"] = far["dtype"] = far["device"] = "1"
    for name, other in (("far", far), ("near", near)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cache.json").write_text(dumps(other))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "cache.json").write_text("{")
    assert differences(tmp_path, key) == ["versions.torch"]
