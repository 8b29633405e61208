"""Whole checkpoints: ours have the keys that OpenPCDet reads, and its spconv 1 weights load here."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cut_models import Batches, CutModel

from pcdet_freeze.engine.checkpoint.io import checkpoint_state, save_checkpoint
from pcdet_freeze.engine.checkpoint.weights import load_pretrained
from pcdet_freeze.engine.optim.lr_schedule import build_scheduler
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing import freeze
from pcdet_freeze.models import load_data_to_gpu

LOGGER = logging.getLogger("pcdet_freeze.test")


def trained(root: Path, name: str, frozen: list[str]) -> Trainer:
    """A trainer after one step."""
    cut = CutModel(root, name)
    if frozen:
        freeze(cut.model, frozen)
    optimizer = build_optimizer(cut.model, cut.cfg.OPTIMIZATION)
    schedule = build_scheduler(optimizer, 1, 1, cut.cfg.OPTIMIZATION)
    trainer = Trainer(
        cut.model, optimizer, schedule, Batches(cut, 1), epochs=1, move=load_data_to_gpu, clip_norm=10
    )
    trainer.run()
    return trainer


def leaves(module: torch.nn.Module) -> Iterator[torch.nn.Module]:
    """Modules without children, in order of registration."""
    children = list(module.children())
    yield from (leaf for child in children for leaf in leaves(child)) if children else iter([module])


def groups_of(model: torch.nn.Module) -> list[int]:
    """Number of parameters in OpenPCDet's two groups: other layers, norm layers."""
    norms = [isinstance(leaf, torch.nn.modules.batchnorm._BatchNorm) for leaf in leaves(model)]
    counts = [len(list(leaf.parameters())) for leaf in leaves(model)]
    return [sum(n for n, norm in zip(counts, norms, strict=True) if norm == kind) for kind in (False, True)]


@pytest.mark.parametrize("frozen", [[], ["vfe", "backbone_3d"]], ids=["unfrozen", "frozen"])
def test_a_checkpoint_has_the_keys_that_openpcdet_reads(
    root: Path, tmp_path: Path, frozen: list[str]
) -> None:
    trainer = trained(root, "kitti_models/second", frozen)
    save_checkpoint(checkpoint_state(trainer), tmp_path / "checkpoint_epoch_1.pth")
    file: dict[str, Any] = torch.load(tmp_path / "checkpoint_epoch_1.pth", weights_only=True)
    assert (file["epoch"], file["it"]) == (1, 1)
    fresh = CutModel(root, "kitti_models/second").model
    fresh.load_state_dict(file["model_state"], strict=True)
    sizes = [len(group["params"]) for group in file["optimizer_state"]["param_groups"]]
    # a frozen run has fewer entries there: only its model state loads in OpenPCDet
    assert (sizes == groups_of(fresh)) is not bool(frozen)
    assert len(file["optimizer_state"]["state"]) == sum(sizes)


def test_a_second_checkpoint_in_spconv_1_layout_loads(root: Path, tmp_path: Path) -> None:
    source, model = (CutModel(root, "kitti_models/second").model for _ in range(2))
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    state = source.state_dict()
    sparse = [key for key, value in state.items() if value.ndim == 5]
    old = {k: v.movedim(0, -1).contiguous() if k in sparse else v for k, v in state.items()}
    torch.save(
        {"model_state": old, "epoch": 80}, tmp_path / "second.pth", _use_new_zipfile_serialization=False
    )
    fit = load_pretrained(model, tmp_path / "second.pth", LOGGER)
    assert len(sparse) == 12 and not (fit.missing or fit.unexpected or fit.misshaped)
    assert all(value.equal(state[key]) for key, value in model.state_dict().items())
