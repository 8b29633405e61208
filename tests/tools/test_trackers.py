"""OPTIMIZATION.TRACKER with the packages themselves, offline: a run, its interruption, its resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from event_files import scalars_in
from tool_runs import FREEZE, folder, log_of, train
from wandb_files import history_in, records_in

from pcdet_freeze.engine import build
from pcdet_freeze.engine.hooks.base import Hook

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef0123456789abcdef01234567"
TRACKED = [*FREEZE, "OPTIMIZATION.TRACKER", "[wandb, mlflow]", "OPTIMIZATION.VALIDATION_LOSS", "1"]
FLAGS = ["--epochs", 2, "--no_savings", "--num_epochs_to_eval", 1]


class Interrupts(Hook):
    """Ctrl-C after the first epoch and its checkpoint."""

    def after_epoch(self, trainer: Any) -> None:
        if trainer.epoch == 1:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs with both trackers, which Ctrl-C ends after the first, and its resume."""
    out = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", KEY)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        built = build.builtin_hooks
        with pytest.MonkeyPatch.context() as interrupted:
            interrupted.setattr(build, "builtin_hooks", lambda *args: [*built(*args), Interrupts()])
            assert train(out, *FLAGS, sets=TRACKED) == 130
        assert train(out, *FLAGS, "--logger_iter_interval", 1, sets=TRACKED) == 0
    return out


def test_the_weights_are_those_of_a_run_without_a_tracker(runs: Path, tmp_path: Path) -> None:
    sets = [*TRACKED, "OPTIMIZATION.VALIDATION_LOSS", "0"]
    assert train(tmp_path, *FLAGS, "--tracker", "none", sets=sets) == 0
    states = [
        torch.load(folder(out) / "ckpt" / "checkpoint_epoch_2.pth")["model_state"] for out in (runs, tmp_path)
    ]
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not list(folder(tmp_path).glob("tracker_*"))


def test_wandb_has_one_run_with_the_tags_of_tensorboard(runs: Path) -> None:
    records = list(records_in(folder(runs)))
    described = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {(run.display_name, run.run_group) for run in described} == {
        ("default", "synthetic_models/pointpillar")
    }
    (identity,) = {run.run_id for run in described}
    assert json.loads((folder(runs) / "tracker_wandb.json").read_text()) == {"id": identity}
    rows, events = history_in(folder(runs)), scalars_in(folder(runs) / "tensorboard")
    assert set(events) <= {tag for row in rows for tag in row}
    losses = [(row["iteration"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == [(step, pytest.approx(value, rel=1e-6)) for step, value in events["train/loss"]]
    codes = [record.exit.exit_code for record in records if record.WhichOneof("record_type") == "exit"]
    assert codes == [130, 0]


def test_wandb_has_config_certificate_and_files(runs: Path) -> None:
    records = list(records_in(folder(runs)))
    config = {part.key: json.loads(part.value_json) for r in records for part in r.run.config.update}
    assert config["MODEL"]["NOT_TRAIN_IN_MULTI_TASK"] == config["run"]["not_train"]
    later = {part.key: part.value_json for r in records for part in r.config.update}
    report = json.loads((folder(runs) / "report.json").read_text())
    assert json.loads(later["certificate"]) == report["certificate"]["digest"]
    kinds = {r.artifact.type: [c.path for c in r.artifact.manifest.contents] for r in records}
    assert kinds["model"] == ["checkpoint_epoch_2.pth"] and "report.html" in kinds["report"]


def test_mlflow_has_one_run_with_parameters_metrics_and_files(runs: Path, monkeypatch: Any) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    client = MlflowClient(tracking_uri=(runs / "mlruns").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("pcdet_freeze").experiment_id])
    assert (run.info.run_name, run.info.status) == ("default", "FINISHED")
    assert run.data.params["OPTIMIZATION.OPTIMIZER"] == "adam_onecycle"
    assert run.data.params["run.not_train"] == '["vfe", "backbone_2d.blocks"]'
    assert run.data.tags["group"] == "synthetic_models/pointpillar" and run.data.tags["certificate"]
    events = scalars_in(folder(runs) / "tensorboard")
    assert set(events) == set(run.data.metrics)
    found = client.get_metric_history(run.info.run_id, "train/loss")
    assert [metric.step for metric in found] == [step for step, _ in events["train/loss"]]
    files = [
        file.path
        for kind in ("report", "checkpoints")
        for file in client.list_artifacts(run.info.run_id, kind)
    ]
    assert "report/report.html" in files and "checkpoints/checkpoint_epoch_2.pth" in files


def test_no_file_of_the_run_holds_the_key_and_the_log_says_where_the_runs_are(runs: Path) -> None:
    files = [path for path in runs.rglob("*") if path.is_file()]
    assert [path for path in files if KEY.encode() in path.read_bytes()] == []
    assert "wandb sync" in log_of(runs) and log_of(runs).count("mlflow: run") == 2


def test_a_tracker_that_refuses_ends_a_new_run_before_it_trains(tmp_path: Path, monkeypatch: Any) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # without a stored key
    assert train(tmp_path, "--tracker", "wandb", "--max_iters", 1) == 1
    log = log_of(tmp_path)
    assert "TRACKER" in log and "wandb login" in log and "WANDB_MODE=offline" in log and "Train:" not in log
