"""On a GPU, torch raises where the host waits in an iteration, apart from the one function that may."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from waits_cases import CASES, SMALL_DATA

import pcdet_freeze
from pcdet_freeze.engine.train_api import read_cfg
from pcdet_freeze.engine.trainer import Trainer

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def forbid_waits(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let a wait be an error in loading and step of all iterations after the first ``after``."""
    load, step = Trainer._load_batches, Trainer.step

    def load_strictly(trainer: Trainer, batches: Any) -> Any:
        torch.cuda.set_sync_debug_mode("error" if trainer.iteration >= after else "default")
        return load(trainer, batches)

    def step_strictly(trainer: Trainer, *batches: Any) -> None:
        step(trainer, *batches)
        torch.cuda.set_sync_debug_mode("default")  # hooks may read what they log

    monkeypatch.setattr(Trainer, "_load_batches", load_strictly)
    monkeypatch.setattr(Trainer, "step", step_strictly)


@pytest.mark.parametrize("name", CASES)
def test_on_cuda_a_wait_in_an_iteration_would_be_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, root: Path, name: str
) -> None:
    monkeypatch.chdir(root)
    forbid_waits(monkeypatch, after=2)
    case, options = CASES[name], {"max_iters": 6, "workers": 0, "fix_random_seed": True}
    cfg = read_cfg(case["cfg"])
    if "model" in case:
        cfg.MODEL = read_cfg(case["model"]).MODEL
    sets = {**SMALL_DATA, "DATA_CONFIG.NUM_SCENES.train": 6 * case["batch"], **case["sets"]}
    own = {"output_dir": tmp_path, "device": "cuda", "batch_size": case["batch"], "num_epochs_to_eval": 0}
    try:
        assert len(pcdet_freeze.train(cfg, sets, **own, **options).losses) == 6
    finally:
        torch.cuda.set_sync_debug_mode("default")
