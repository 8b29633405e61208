"""Predictions, files and metrics from a loader; watching a folder of checkpoints."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from engine_toy import toy_trainer
from torch import nn
from torch.utils.data import DataLoader, Dataset

from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.testing.evaluator import eval_one_epoch, evaluate_all
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.evaluation import EVALUATORS

LOGGER = logging.getLogger("pcdet_freeze.test")
CFG = {"CLASS_NAMES": ["Car"], "MODEL": {"POST_PROCESSING": {"EVAL_METRIC": "toy_count"}}}

if "toy_count" not in EVALUATORS:

    @EVALUATORS.register_as("toy_count")
    def toy_count(gt: Any, dt: Any, class_names: Any) -> tuple[str, dict[str, float]]:
        same = [g["frame_id"] == d["frame_id"] for g, d in zip(gt, dt, strict=True)]
        return f"matched {sum(same)} of {len(gt)}", {"matched": float(sum(same))}


class Frames(Dataset):
    """Five frames, each with one true object."""

    truth = 5

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"frame_id": f"{index:06d}"}

    @staticmethod
    def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
        return {"frame_id": np.array([s["frame_id"] for s in samples]), "batch_size": len(samples)}

    def ground_truth_annos(self) -> list[dict[str, Any]]:
        return [{"frame_id": f"{i:06d}", "name": np.array(["Car"])} for i in range(self.truth)]

    def generate_prediction_dicts(self, batch: Any, predictions: Any, names: Any, folder: Any = None) -> Any:
        annos = [{"frame_id": str(f), "name": np.array(names * 2)} for f in batch["frame_id"]]
        for anno in annos if folder is not None else []:
            (folder / f"{anno['frame_id']}.txt").write_text("Car\n")
        return annos


class Predicts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, batch: dict[str, Any]) -> Any:
        assert not self.training and not torch.is_grad_enabled()
        return [{"pred_boxes": ()}] * batch["batch_size"], {
            "gt": batch["batch_size"],
            "roi_0.5": 0,
            "rcnn_0.5": 1,
        }


@pytest.fixture
def loader() -> DataLoader:
    return DataLoader(Frames(), batch_size=2, collate_fn=Frames.collate)


def test_metrics_files_and_recall_come_out(
    loader: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    result = eval_one_epoch(CFG, Predicts(), loader, 7, LOGGER, result_dir=tmp_path)
    assert result == {"matched": 5.0, "recall/roi_0.5": 0.0, "recall/rcnn_0.5": 3 / 5}
    assert json.loads((tmp_path / "result.json").read_text()) == result
    annos = pickle.loads((tmp_path / "result.pkl").read_bytes())
    assert [anno["frame_id"] for anno in annos] == [f"{i:06d}" for i in range(5)]
    for line in (
        "EPOCH 7 EVALUATION",
        "recall_rcnn_0.5: 0.600000",
        "objects (5 samples): 2.000",
        "matched 5 of 5",
    ):
        assert line in caplog.text


def test_predictions_are_written_as_text_where_asked_for(loader: Any, tmp_path: Path) -> None:
    eval_one_epoch(CFG, Predicts(), loader, 1, LOGGER, result_dir=tmp_path, save_to_file=True)
    assert len(list((tmp_path / "final_result" / "data").glob("*.txt"))) == 5


def test_a_frame_without_prediction_is_an_error(loader: Any) -> None:
    loader.dataset.truth = 6
    with pytest.raises(DataError, match="5 predictions for 6 frames"):
        eval_one_epoch(CFG, Predicts(), loader, 1, LOGGER)


def test_an_unknown_metric_lists_the_known_ones(loader: Any) -> None:
    cfg = {**CFG, "MODEL": {"POST_PROCESSING": {"EVAL_METRIC": "lyft"}}}
    with pytest.raises(ConfigError, match="kitti"):
        eval_one_epoch(cfg, Predicts(), loader, 1, LOGGER)


@pytest.fixture
def ckpt_dir(tmp_path: Path) -> Path:
    toy_trainer([CheckpointHook(tmp_path / "ckpt")], epochs=3).run()
    return tmp_path / "ckpt"


def watch(ckpt_dir: Path, **more: Any) -> tuple[list[int], list[float]]:
    slept: list[float] = []
    out = ckpt_dir.parent / "eval"
    done = evaluate_all(
        toy_trainer().model,
        lambda model, epoch: {"ap": 1.0},
        ckpt_dir,
        out,
        LOGGER,
        sleep=slept.append,
        **more,
    )
    return done, slept


def test_all_checkpoints_are_evaluated_once_and_then_it_waits(ckpt_dir: Path) -> None:
    assert watch(ckpt_dir, max_waiting_mins=1) == ([1, 2, 3], [30.0, 30.0])
    assert (ckpt_dir.parent / "eval" / "eval_list.txt").read_text().split() == ["1", "2", "3"]
    assert watch(ckpt_dir, max_waiting_mins=0) == ([], [])


def test_a_folder_without_checkpoints_is_told(tmp_path: Path, caplog: Any) -> None:
    assert watch(tmp_path / "typo", max_waiting_mins=0)[0] == []
    assert "Nothing was evaluated" in caplog.text and str(tmp_path / "typo") in caplog.text


def test_checkpoints_before_start_epoch_are_left_out(ckpt_dir: Path) -> None:
    assert watch(ckpt_dir, max_waiting_mins=0, start_epoch=2)[0] == [2, 3]
