"""Parts that users of OpenPCDet freeze, under OpenPCDet's names: resolved, held, and the others trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from standin_runs import Standin, batch_of

from pcdet_freeze import openpcdet

PARTS = [
    ("second", ["vfe", "backbone_3d.conv_input"]),
    ("second", ["backbone_3d.conv_input", "backbone_3d.conv1"]),
    ("pv_rcnn", ["backbone_3d", "!backbone_3d.conv1"]),
    ("pv_rcnn", ["pfe"]),
    ("pv_rcnn", ["pfe.vsa_point_feature_fusion", "point_head.cls_layers"]),
    ("pv_rcnn", ["point_head"]),
    ("pv_rcnn", ["roi_head"]),
    ("pv_rcnn", ["roi_head.shared_fc_layer"]),
    ("voxel_rcnn", ["backbone_3d", "backbone_2d", "dense_head"]),
    ("parta2", ["backbone_3d", "point_head"]),
    ("caddn", ["vfe.ffn"]),
    ("caddn", ["vfe.ffn.channel_reduce", "vfe.f2v"]),
    ("bevfusion", ["image_backbone", "neck", "vtransform"]),
    ("bevfusion", ["fuser", "dense_head.decoder"]),
    ("dsvt", ["backbone_3d.stage_0", "backbone_3d.residual_norm_stage_0"]),
    ("dsvt", ["backbone_3d"]),
]


def state(model: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def train(model: Any, steps: int = 2) -> None:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01)
    openpcdet.begin(model, optimizer)
    for step in range(steps):
        optimizer.zero_grad()
        model.train()
        model(batch_of(step))[0]["loss"].backward()
        optimizer.step()
    openpcdet.verify(model)


def split(names: list[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(prefixes of frozen keys, prefixes of keys that an entry with ``!`` exempts)."""
    exempt = [name for name in names if name.startswith("!")]
    return tuple(set(names) - set(exempt)), tuple(name[1:] for name in exempt)


@pytest.mark.parametrize(("config", "names"), PARTS)
def test_p1_a_frozen_part_stays_bit_identical_and_every_other_parameter_trains(
    standin: Standin, config: str, names: list[str]
) -> None:
    openpcdet.install()
    model = standin.build(config, names)
    frozen, exempt = split(names)
    before = state(model)
    train(model)
    moved = {name for name, value in state(model).items() if not torch.equal(value, before[name])}
    held = {name for name in before if name.startswith(frozen) and not name.startswith(exempt)}
    assert held and not moved & held
    assert moved >= {name for name, _ in model.named_parameters()} - held
