"""A training on a joined set with balanced tasks: it resumes exactly, with any number of workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from joined_training import joined_cfg
from two_processes import torchrun, worker

from pcdet_freeze import train
from pcdet_freeze.engine.train_api import TrainResult

pytestmark = pytest.mark.slow


def run(out: Path, workers: int = 0, stop_at: int | None = None, **more: Any) -> TrainResult:
    cfg = joined_cfg()
    if stop_at is not None:
        cfg.HOOK = [{"NAME": "stop_at.StopAt", "ITERATION": stop_at}]
    options: dict[str, Any] = {"epochs": 2, "num_epochs_to_eval": 0, "ckpt_save_time_interval": 0} | more
    return train(cfg, output_dir=out, workers=workers, device="cpu", fix_random_seed=True, **options)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return run(tmp_path_factory.mktemp("unbroken"), num_epochs_to_eval=1)


def test_a_run_that_ended_within_an_epoch_resumes_exactly(unbroken: TrainResult, tmp_path: Path) -> None:
    run(tmp_path, stop_at=4)
    resumed = run(tmp_path, workers=1)
    assert len(resumed.losses) == 2
    wanted = unbroken.model.state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in resumed.model.state_dict().items())


def test_each_set_is_evaluated_by_its_own_labels(unbroken: TrainResult) -> None:
    assert {
        "scenes/Car_3d/moderate_R40",
        "roads/segmentation/mIoU",
        "roads/lane/F1",
    } <= unbroken.metrics.keys()
    assert not any(key.startswith(("scenes/lane", "roads/Car")) for key in unbroken.metrics)


def test_two_ranks_share_the_frames_and_have_the_same_weights(tmp_path: Path) -> None:
    done = torchrun(worker("joined_training.py"), str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(value, second["state"][name]) for name, value in first["state"].items())
    frames = [frame.partition("/")[0] for frame in first["frames"] + second["frames"]]
    assert sorted(frames) == ["roads"] * 4 + ["scenes"] * 2  # two of each task in an epoch of six
