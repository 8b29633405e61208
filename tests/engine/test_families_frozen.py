"""Every YAML of OpenPCDet that is built here trains frozen steps in the real trainer, its contract checked.

The models are whole; the range is cut to 64 by 64 voxels, and frames are random.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cut_models import Batches, CutModel

from pcdet_freeze.engine.hooks.freeze_checks import OptimizerGroupsHook
from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import Trainer, clip_norm_of
from pcdet_freeze.models import load_data_to_gpu

STEPS = 5
PILLARS = ["vfe", "backbone_2d.blocks"]
VOXELS = ["vfe", "backbone_3d"]
ALL_BUT_HEADS = ["vfe", "backbone_3d", "backbone_2d"]
LISTS = {
    "kitti_models/pointpillar": PILLARS,
    "kitti_models/second": VOXELS,
    "kitti_models/second_multihead": [*ALL_BUT_HEADS, "dense_head.shared_conv", "dense_head.rpn_heads.[01]"],
    "once_models/pointpillar": ["vfe", "backbone_2d.blocks.[01]"],
    "once_models/second": [*VOXELS, "backbone_2d.blocks.0"],
    "once_models/centerpoint": ALL_BUT_HEADS,
    "waymo_models/pointpillar_1x": PILLARS,
    "waymo_models/second": ["vfe", "backbone_3d.conv_input", "backbone_3d.conv[12]"],
    "waymo_models/centerpoint": VOXELS,
    "waymo_models/centerpoint_pillar_1x": [*PILLARS, "backbone_2d.deblocks", "dense_head.shared_conv"],
    "waymo_models/centerpoint_dyn_pillar_1x": PILLARS,
    "waymo_models/centerpoint_without_resnet": VOXELS,
    "nuscenes_models/cbgs_pp_multihead": ["vfe", "backbone_2d", "dense_head.shared_conv"],
    "nuscenes_models/cbgs_second_multihead": VOXELS,
    "nuscenes_models/cbgs_dyn_pp_centerpoint": PILLARS,
    "nuscenes_models/cbgs_voxel01_res3d_centerpoint": [*ALL_BUT_HEADS, "dense_head.heads_list.[0-4]"],
    "nuscenes_models/cbgs_voxel0075_res3d_centerpoint": VOXELS,
}


def frozen_trainer(root: Path, name: str) -> Trainer:
    """The order of tools/train.py on a small range."""
    cut = CutModel(root, name, NOT_TRAIN_IN_MULTI_TASK=LISTS[name], FREEZE={"ALLOW_RANDOM": True})
    model, optim = cut.model, cut.cfg.OPTIMIZATION
    hooks = [*hooks_from_cfg(cut.cfg, model), OptimizerGroupsHook()]
    optimizer = build_optimizer(model, optim)
    schedule = build_scheduler(optimizer, STEPS, STEPS, optim)
    run = {"hooks": hooks, "clip_norm": clip_norm_of(optim), "move": load_data_to_gpu}
    return Trainer(model, optimizer, schedule, Batches(cut, STEPS), epochs=1, max_iters=STEPS, **run)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(LISTS))
def test_five_frozen_steps_of_a_whole_model_keep_the_contract(root: Path, name: str) -> None:
    trainer = frozen_trainer(root, name)
    model, handle = trainer.model, trainer.hooks[0].handle  # type: ignore[attr-defined]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer.run()
    frozen = [key for key in before if any(key.startswith(f"{part}.") for part in handle.names)]
    moved = [key for key, value in model.state_dict().items() if not value.equal(before[key])]
    assert trainer.iteration == STEPS and frozen
    assert not set(frozen) & set(moved)
    assert {key for key, p in model.named_parameters() if p.requires_grad and p.ndim > 1} <= set(moved)
