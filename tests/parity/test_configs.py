"""The YAMLs have OpenPCDet's values, and the models built from them its state_dict keys and shapes.

Compared: every file of configs/, and of state_dicts/ those of the YAMLs that cfgs/ carries (the others are
of unsupported families, which test_families.py lists).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pointpillar_golden import fake_dataset, load_json

from pcdet_freeze.config import cfg_from_yaml_file, plain
from pcdet_freeze.models import BACKBONES_2D, build_network
from pcdet_freeze.models.backbones_2d import BaseBEVResBackbone
from pcdet_freeze.models.context import BuildContext, Features
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.sections import read_section

NAMES = [
    "kitti_models/pointpillar",
    "kitti_models/second",
    "kitti_models/second_multihead",
    "once_models/pointpillar",
    "once_models/second",
    "once_models/centerpoint",
    "waymo_models/pointpillar_1x",
    "waymo_models/second",
    "waymo_models/centerpoint",
    "waymo_models/centerpoint_pillar_1x",
    "waymo_models/centerpoint_dyn_pillar_1x",
    "waymo_models/centerpoint_without_resnet",
    "nuscenes_models/cbgs_pp_multihead",
    "nuscenes_models/cbgs_second_multihead",
    "nuscenes_models/cbgs_dyn_pp_centerpoint",
    "nuscenes_models/cbgs_voxel01_res3d_centerpoint",
    "nuscenes_models/cbgs_voxel0075_res3d_centerpoint",
]
CHECKPOINT_KEY = {"DATA_PATH": "data/kitti", "INFO_ROOT": None, "KEEP_EMPTY_FRAMES": False}
"""Keys that only our KITTI data set has: a path from the project's root, two keys at their default."""


def figures_of(reference: Path, kind: str, name: str) -> dict[str, Any]:
    return load_json(reference / kind / f"{name.replace('/', '__')}.json")


@pytest.mark.parametrize("name", NAMES)
def test_every_yaml_equals_the_config_of_openpcdet(root: Path, reference: Path, name: str) -> None:
    expected = figures_of(reference, "configs", name)
    if name.startswith("kitti"):
        expected["DATA_CONFIG"].update(CHECKPOINT_KEY)
    assert plain(cfg_from_yaml_file(root / "cfgs" / f"{name}.yaml")) == expected


def test_every_config_of_the_reference_has_a_yaml(reference: Path) -> None:
    found = {path.stem for path in (reference / "configs").iterdir()}
    assert found == {name.replace("/", "__") for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_keys_and_shapes_equal_openpcdet(root: Path, reference: Path, name: str) -> None:
    expected = figures_of(reference, "state_dicts", name)
    facts = ("class_names", "point_cloud_range", "voxel_size", "num_point_features")
    dataset = fake_dataset(*(expected[fact] for fact in facts))
    cfg = cfg_from_yaml_file(root / "cfgs" / f"{name}.yaml")
    with torch.device("meta"):
        model = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset)
    state = model.state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected["keys"]
    assert list(state) == list(expected["keys"])
    assert [key for key, v in state.items() if v.dtype == torch.int64] == expected["int_keys"]
    assert sum(p.numel() for p in model.parameters()) == expected["num_params"]
    assert list(model.module_names) == expected["module_order"]


def test_state_dict_keys_of_the_residual_backbone_equal_openpcdet(reference: Path) -> None:
    # no config of ours names it; DSVT's does, whose state dict the reference has
    keys = figures_of(reference, "state_dicts", "waymo_models/dsvt_pillar")["keys"]
    section = {
        "LAYER_NUMS": [1, 2, 2],
        "LAYER_STRIDES": [1, 2, 2],
        "NUM_FILTERS": [128, 128, 256],
        "UPSAMPLE_STRIDES": [1, 2, 4],
        "NUM_UPSAMPLE_FILTERS": [128, 128, 128],
    }
    context = BuildContext(("Car",), 4, (0.0,) * 6, (468, 468, 1), (0.32, 0.32, 6.0))
    context.features["spatial_features"] = Features(192, 468, 468)
    settings, faults = read_section(BaseBEVResBackbone.Settings, section, "BACKBONE_2D")
    raise_faults(faults)
    assert settings is not None
    with torch.device("meta"):
        backbone = BaseBEVResBackbone(settings, context)
    found = {f"backbone_2d.{key}": list(value.shape) for key, value in backbone.state_dict().items()}
    assert found == {key: shape for key, shape in keys.items() if key.startswith("backbone_2d.")}
    assert BACKBONES_2D.get("BaseBEVResBackbone") is BaseBEVResBackbone
