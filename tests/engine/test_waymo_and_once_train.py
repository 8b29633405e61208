"""The YAMLs of Waymo and ONCE train from folders in the real formats; frozen modules keep their bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from once_maker import make_once
from waymo_maker import make_waymo

import pcdet_freeze
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets.once import prepare_once
from pcdet_freeze.datasets.waymo import prepare_waymo
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

PILLARS, VOXELS = ["vfe", "backbone_2d"], ["vfe", "backbone_3d", "backbone_2d.blocks"]
LISTS = {
    "waymo_models/pointpillar_1x": PILLARS,
    "waymo_models/centerpoint_pillar_1x": PILLARS,
    "waymo_models/centerpoint_dyn_pillar_1x": PILLARS,
    "waymo_models/second": VOXELS,
    "waymo_models/centerpoint": VOXELS,
    "waymo_models/centerpoint_without_resnet": VOXELS,
    "once_models/pointpillar": PILLARS,
    "once_models/second": VOXELS,
    "once_models/centerpoint": VOXELS,
}
STAGED = ("waymo_models/centerpoint_pillar_1x", "once_models/pointpillar")
"""their detector is trained first"""
EVALUATED = (*STAGED, "waymo_models/second", "once_models/centerpoint")
FLAGS: dict[str, Any] = {
    "batch_size": 1,
    "workers": 0,
    "device": "cpu",
    "fix_random_seed": True,
    "max_iters": 3,
}


@pytest.fixture(scope="module")
def data(root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Prepared folders of both sets."""
    found = {}
    for name, make, prepare in (("waymo", make_waymo, prepare_waymo), ("once", make_once, prepare_once)):
        folder = make(tmp_path_factory.mktemp("sets") / name)
        cfg = cfg_from_yaml_file(root / f"cfgs/dataset_configs/{name}_dataset.yaml")
        cfg.DATA_PATH = str(folder)
        names = ["Vehicle", "Pedestrian", "Cyclist", "Car", "Bus", "Truck"]
        prepare(cfg, names)
        found[name] = str(folder)
    return found


def toy(root: Path, name: str, data: dict[str, str]) -> Any:
    """The config on a few metres, with few channels and blocks."""
    cfg = cfg_from_yaml_file(root / f"cfgs/{name}.yaml")
    low, high = cfg.DATA_CONFIG.POINT_CLOUD_RANGE[2::3]
    edge = 4.8 if LISTS[name] == VOXELS else 6.4
    cfg.DATA_CONFIG.update(
        DATA_PATH=data[name.partition("_")[0]], POINT_CLOUD_RANGE=[-edge, -edge, low, edge, edge, high]
    )
    backbone = cfg.MODEL.BACKBONE_2D
    for key, value in (("LAYER_NUMS", 1), ("NUM_FILTERS", 16), ("NUM_UPSAMPLE_FILTERS", 16)):
        backbone[key] = [value] * len(backbone[key])
    if "NUM_FILTERS" in cfg.MODEL.VFE:
        cfg.MODEL.VFE.NUM_FILTERS = [16] * len(cfg.MODEL.VFE.NUM_FILTERS)
        cfg.MODEL.MAP_TO_BEV.NUM_BEV_FEATURES = 16
    return cfg


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LISTS))
def test_three_steps_keep_the_bits_of_frozen_modules(
    root: Path, data: dict[str, str], tmp_path: Path, name: str
) -> None:
    cfg, detector = toy(root, name, data), None
    if name in STAGED:
        detector = pcdet_freeze.train(
            cfg, output_dir=tmp_path / "1", num_epochs_to_eval=0, **FLAGS
        ).checkpoint
        assert detector is not None
    cfg.MODEL.update(NOT_TRAIN_IN_MULTI_TASK=LISTS[name], FREEZE={"ALLOW_RANDOM": detector is None})
    done = pcdet_freeze.train(
        cfg,
        output_dir=tmp_path / "2",
        pretrained=detector,
        num_epochs_to_eval=int(name in EVALUATED),
        **FLAGS,
    )
    assert len(done.losses) == 3 and all(torch.isfinite(torch.tensor(done.losses)))
    assert done.freeze is not None
    done.freeze.verify()
    prefix = "approximate_AP" if name.startswith("waymo") else "AP"
    wanted = {f"{prefix}_mean/{column}" for column in ("overall", "0-30m")}
    assert wanted <= done.metrics.keys() or name not in EVALUATED
    if detector is not None:
        before, after = load_checkpoint(detector)["model_state"], done.model.state_dict()
        frozen = [key for key in before if key.startswith(tuple(f"{part}." for part in LISTS[name]))]
        assert frozen and all(torch.equal(before[key], after[key]) for key in frozen)
        assert any(not torch.equal(before[key], after[key]) for key in before)
