"""Every model config of the reference is built with its state_dict keys, or is an error naming the plugin.

Together with test_configs.py this reads all files of state_dicts/. Not compared: ``sha`` of the index, and
all but the family of unsupported models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pointpillar_golden import fake_dataset, load_json
from test_configs import NAMES

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models import build_network

SIBLINGS = {
    "kitti_models/pointpillar_newaugs": "kitti_models/pointpillar",
    "kitti_models/pointpillar_pyramid_aug": "kitti_models/pointpillar",
    "waymo_models/centerpoint_4frames": "waymo_models/centerpoint",
}
"""Models that differ from a supported one only in their data."""

NOT_OURS = {
    "BevFusion",
    "CaDDN",
    "MPPNet",
    "MPPNetE2E",
    "PVRCNN",
    "PVRCNNPlusPlus",
    "PartA2Net",
    "PillarNet",
    "PointRCNN",
    "SECONDNetIoU",
    "TransFusion",
    "VoxelNeXt",
    "VoxelRCNN",
}
DSVT = {"waymo_models/dsvt_pillar", "waymo_models/dsvt_voxel"}
"""CenterPoints with an unsupported 3D backbone."""


def figures_of(reference: Path, name: str) -> dict[str, Any]:
    return load_json(reference / "state_dicts" / f"{name.replace('/', '__')}.json")


def dataset_of(figures: dict[str, Any]) -> Any:
    facts = ("class_names", "point_cloud_range", "voxel_size", "num_point_features")
    return fake_dataset(*(figures[fact] for fact in facts))


def test_every_model_of_the_reference_is_built_or_of_an_unsupported_family(reference: Path) -> None:
    known = {*NAMES, *SIBLINGS, *DSVT}
    index = load_json(reference / "state_dicts" / "INDEX.json")
    rest = {name: figures_of(reference, name)["model"] for name in index["built"] if name not in known}
    assert set(rest.values()) == NOT_OURS
    assert known <= set(index["built"]) and not index["failed"]


def test_the_index_agrees_with_the_files(reference: Path) -> None:
    for name, entry in load_json(reference / "state_dicts" / "INDEX.json")["built"].items():
        figures = figures_of(reference, name)
        assert (entry["num_keys"], entry["num_params"]) == (len(figures["keys"]), figures["num_params"])
        assert figures["num_keys"] == len(figures["keys"])


@pytest.mark.parametrize("name", list(SIBLINGS))
def test_a_model_that_differs_only_in_its_data_has_the_keys_of_openpcdet(
    root: Path, reference: Path, name: str
) -> None:
    cfg, expected = cfg_from_yaml_file(root / "cfgs" / f"{SIBLINGS[name]}.yaml"), figures_of(reference, name)
    if any(key.endswith(".vel.0.0.weight") for key in expected["keys"]):
        branches = cfg.MODEL.DENSE_HEAD.SEPARATE_HEAD_CFG
        branches.HEAD_ORDER.append("vel")
        branches.HEAD_DICT.vel = {"out_channels": 2, "num_conv": 2}
        cfg.MODEL.DENSE_HEAD.LOSS_CONFIG.LOSS_WEIGHTS.code_weights = [1.0] * 10
    with torch.device("meta"):
        state = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset_of(expected)).state_dict()
    assert {key: list(value.shape) for key, value in state.items()} == expected["keys"]


@pytest.mark.parametrize("family", sorted(NOT_OURS))
def test_an_unsupported_family_is_an_error_that_names_the_plugin(reference: Path, family: str) -> None:
    known = "MODEL.NAME must be one of CenterPoint, PointPillar, SECONDNet"
    with pytest.raises(ConfigError, match=rf"{known}.*'{family}'.*python -m pcdet_freeze\.openpcdet"):
        build_network({"NAME": family}, 1, None)


def test_an_unsupported_backbone_is_an_error_that_names_the_plugin(root: Path) -> None:
    cfg = cfg_from_yaml_file(root / "cfgs/waymo_models/centerpoint.yaml")
    cfg.MODEL.BACKBONE_3D = {"NAME": "DSVT"}
    message = r"BACKBONE_3D\.NAME: .*VoxelBackBone8x, VoxelResBackBone8x; got 'DSVT'.*pcdet_freeze\.openpcdet"
    with pytest.raises(ConfigError, match=message):
        build_network(cfg.MODEL, 3, None)


def test_the_table_in_the_docs_names_every_yaml_and_every_family(root: Path) -> None:
    text = (root / "docs/models.md").read_text()
    assert all(f"| {name} | equal |" in text for name in NAMES)
    assert all(name.split("/")[1] in text for name in {*SIBLINGS, *DSVT})
