"""The CenterPoint YAMLs carry OpenPCDet's figures, and what they build has its keys and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pointpillar_golden import fake_dataset, load_json

from pcdet_freeze.config import cfg_from_yaml_file, plain
from pcdet_freeze.models import BACKBONES_2D, build_network
from pcdet_freeze.models.backbones_2d import BaseBEVBackbone, BaseBEVResBackbone
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.models.dense_heads import CenterHead
from pcdet_freeze.models.settings import raise_faults, read_settings

PILLARS = [
    "waymo_models/centerpoint_pillar_1x",
    "waymo_models/centerpoint_dyn_pillar_1x",
    "nuscenes_models/cbgs_dyn_pp_centerpoint",
]
SPARSE = [
    "once_models/centerpoint",
    "waymo_models/centerpoint",
    "waymo_models/centerpoint_without_resnet",
    "nuscenes_models/cbgs_voxel01_res3d_centerpoint",
    "nuscenes_models/cbgs_voxel0075_res3d_centerpoint",
]


def expected_of(reference: Path, name: str) -> dict[str, Any]:
    return load_json(reference / "state_dicts" / f"{name.replace('/', '__')}.json")


def dataset_of(expected: dict[str, Any]) -> Any:
    names = ("class_names", "point_cloud_range", "voxel_size", "num_point_features")
    return fake_dataset(*(expected[name] for name in names))


@pytest.mark.parametrize("name", PILLARS + SPARSE)
def test_a_yaml_has_the_figures_of_openpcdet(root: Path, reference: Path, name: str) -> None:
    figures = load_json(reference / "configs" / f"{name.replace('/', '__')}.json")
    assert plain(cfg_from_yaml_file(root / "cfgs" / f"{name}.yaml")) == figures


@pytest.mark.parametrize("name", PILLARS)
def test_state_dict_has_the_keys_and_shapes_of_openpcdet(root: Path, reference: Path, name: str) -> None:
    expected = expected_of(reference, name)
    cfg = cfg_from_yaml_file(root / "cfgs" / f"{name}.yaml")
    with torch.device("meta"):
        model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset_of(expected))
    state = model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected["keys"]
    assert list(state) == list(expected["keys"])
    assert [key for key, v in state.items() if v.dtype == torch.int64] == expected["int_keys"]
    assert sum(p.numel() for p in model.parameters()) == expected["num_params"]
    assert list(model.module_names) == expected["module_order"]


@pytest.mark.parametrize("name", SPARSE)
def test_behind_sparse_voxels_backbone_and_head_have_the_keys_of_openpcdet(
    root: Path, reference: Path, name: str
) -> None:
    expected = expected_of(reference, name)
    cfg = cfg_from_yaml_file(root / "cfgs" / f"{name}.yaml")
    context = BuildContext.from_dataset(dataset_of(expected), len(cfg.CLASS_NAMES))
    columns, rows = (int(cells) // 8 for cells in context.grid_size[:2])
    context.features["spatial_features"] = Features(cfg.MODEL.MAP_TO_BEV.NUM_BEV_FEATURES, rows, columns)
    with torch.device("meta"):
        parts = {
            "backbone_2d": build(BaseBEVBackbone, cfg.MODEL.BACKBONE_2D, context),
            "dense_head": build(CenterHead, cfg.MODEL.DENSE_HEAD, context),
        }
    found = {f"{part}.{k}": list(v.shape) for part, m in parts.items() for k, v in m.state_dict().items()}
    assert found == {key: shape for key, shape in expected["keys"].items() if key.split(".")[0] in parts}


def build(cls: Any, section: dict[str, Any], context: BuildContext) -> torch.nn.Module:
    values, faults = {key: value for key, value in section.items() if key != "NAME"}, []  # type: ignore[var-annotated]
    settings = read_settings(cls.Settings, values, section["NAME"], faults)
    raise_faults(faults)
    return cls(settings, context)


def test_the_residual_backbone_has_the_keys_of_openpcdet(reference: Path) -> None:
    # no config of ours names it; DSVT's does, whose state dict the reference has
    keys = expected_of(reference, "waymo_models/dsvt_pillar")["keys"]
    section = {
        "NAME": "BaseBEVResBackbone",
        "LAYER_NUMS": [1, 2, 2],
        "LAYER_STRIDES": [1, 2, 2],
        "NUM_FILTERS": [128, 128, 256],
        "UPSAMPLE_STRIDES": [1, 2, 4],
        "NUM_UPSAMPLE_FILTERS": [128, 128, 128],
    }
    context = BuildContext(("Car",), 4, (0.0,) * 6, (468, 468, 1), (0.32, 0.32, 6.0))
    context.features["spatial_features"] = Features(192, 468, 468)
    with torch.device("meta"):
        backbone = build(BaseBEVResBackbone, section, context)
    found = {f"backbone_2d.{key}": list(value.shape) for key, value in backbone.state_dict().items()}
    assert found == {key: shape for key, shape in keys.items() if key.startswith("backbone_2d.")}
    assert BACKBONES_2D.get("BaseBEVResBackbone") is BaseBEVResBackbone
