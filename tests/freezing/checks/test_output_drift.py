"""Output drift (P2): outputs of frozen modules at the end of a run, compared with those at its start."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import assert_same_state, tensors_of
from proof_toys import Loader, detector_trainer, toy, toy_batch
from torch import nn

from pcdet_freeze.engine.hooks.freeze_checks import OutputDriftHook
from pcdet_freeze.engine.hooks.logging import SummaryHook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.checks.output_drift import compare_outputs, named_tensors, outputs_of

KEPT = ["vfe", "backbone_2d.blocks", "backbone_2d.deblocks", "dense_head"]
"""detection, with everything that it depends on"""
BATCHES = [toy_batch("label", "lane_label", seed=seed) for seed in range(3)]


def trained(entries: list[str], model: nn.Module | None = None, **more: Any) -> Trainer:
    trainer = detector_trainer(model or toy("DENSE_HEAD", "LANE_HEAD"), BATCHES, entries, **more)
    trainer.run()
    return trainer


def output_drift(trainer: Trainer) -> dict[str, Any]:
    found: dict[str, Any] = trainer.results["output_drift"]
    return found


def test_p2_a_task_that_depends_on_frozen_modules_only_keeps_its_outputs_bit_for_bit(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    found = output_drift(trained(KEPT, logger=logging.getLogger("p2")))
    assert found["dense_head"] == {
        "verdict": "identical", "fed_by": [], "relative_difference": {"proposals": 0.0},
    }  # fmt: skip
    assert "dense_head: 1 output identical to the start's, bit for bit (proposals)" in caplog.text
    assert "first training batch, iteration 3 against 0" in caplog.text


def test_p2_the_drift_of_a_frozen_head_on_a_trainable_branch_is_a_number_not_an_error(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    entries = [name for name in KEPT if name != "backbone_2d.deblocks"]
    model = toy("DENSE_HEAD", "ROI_HEAD", "LANE_HEAD")  # the roi head lets the branch train
    found = output_drift(trained(entries, model, logger=logging.getLogger("p2")))["dense_head"]
    assert found["verdict"] == "drift" and found["fed_by"] == ["backbone_2d.deblocks"]
    assert 0 < found["relative_difference"]["proposals"] < 10
    assert "dense_head: drifted by proposals" in caplog.text
    assert output_drift(trained(["vfe"]))["vfe"]["verdict"] == "identical"


def test_p2_modules_that_a_schedule_unfreezes_are_compared_with_the_start_of_the_run() -> None:
    freed = {"SCHEDULE": [{"EPOCH": 1, "TRAIN": ["backbone_2d.deblocks"]}]}
    trainer = trained(KEPT, toy("DENSE_HEAD", "ROI_HEAD", "LANE_HEAD"), options=freed, epochs=2)
    found = output_drift(trainer)
    assert found["vfe"]["verdict"] == "identical"
    assert found["dense_head"]["fed_by"] == ["backbone_2d.deblocks"]
    assert found["dense_head"]["relative_difference"]["proposals"] > 0


class ReadsTheCounter(nn.Module):
    """Reads a counter that it does not declare: its tensors are equal after training, its outputs are not."""

    def __init__(self, inner: nn.Module, detector: Any) -> None:
        super().__init__()
        self.inner = inner
        self.__dict__["detector"] = detector

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + self.detector.global_step.item()


def test_p2_outputs_that_change_though_all_inputs_are_frozen_are_an_error() -> None:
    model = toy("DENSE_HEAD", "LANE_HEAD")
    model.dense_head.out = ReadsTheCounter(model.dense_head.out, model)
    with pytest.raises(CertificateError, match=r"dense_head: differs .* by proposals"):
        trained(KEPT, model)


class DrawsAlways(nn.Module):
    """Random in eval mode too, from a generator that ignores the seed."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.__dict__["draw"] = torch.Generator()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 1e-6 * torch.randn(1, generator=self.draw)


def test_p2_noise_between_runs_of_the_start_is_reported_and_is_no_error(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    model = toy("DENSE_HEAD", "LANE_HEAD")
    model.dense_head.out = DrawsAlways(model.dense_head.out)
    found = output_drift(trained(KEPT, model, logger=logging.getLogger("p2")))
    assert found["dense_head"]["verdict"] == "noise"
    assert "; runs of the start differ by proposals" in caplog.text


class DrawsAtTimes(DrawsAlways):
    """Differs in some runs only; the first run is of the end, the others are of the start."""

    runs = 0
    noisy: tuple[int, ...] = ()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.runs += not self.training
        return super().forward(x) if self.runs in self.noisy else self.inner(x)


@pytest.mark.parametrize("noisy", [(3,), (1, 6)])
def test_p2_two_runs_of_the_start_that_agree_by_chance_raise_no_error(noisy: Any) -> None:
    model = toy("DENSE_HEAD", "LANE_HEAD")
    model.dense_head.out = DrawsAtTimes(model.dense_head.out)
    model.dense_head.out.noisy = noisy
    handle = freeze(model, KEPT)
    kinds = {drift.module: drift.kind for drift in compare_outputs(handle.model, {}, toy_batch())}
    assert kinds == {"vfe": "identical", "dense_head": "noise"}


def test_p2_a_change_far_above_the_noise_is_an_error() -> None:
    model = toy("DENSE_HEAD", "LANE_HEAD")
    model.dense_head.out = ReadsTheCounter(DrawsAlways(model.dense_head.out), model)
    with pytest.raises(CertificateError, match=r"dense_head: differs .*; runs of the start differ by"):
        trained(KEPT, model)


def test_p2_the_comparison_changes_neither_model_nor_batch_nor_generators() -> None:
    model = toy("DENSE_HEAD", "LANE_HEAD")
    freeze(model, KEPT)
    model.train()
    start = {name: tensor.detach().clone() for name, tensor in named_tensors(model).items()}
    with torch.no_grad():
        model.lane_head.out.weight += 1
    before, modes = tensors_of(model), [m.training for m in model.modules()]
    rng, batch = torch.get_rng_state(), toy_batch()
    drifts = compare_outputs(model, start, batch)
    assert [drift.kind for drift in drifts] == ["identical", "identical"]
    assert_same_state(tensors_of(model), before)
    assert [m.training for m in model.modules()] == modes and sorted(batch) == ["batch_size", "x"]
    assert torch.equal(torch.get_rng_state(), rng)


def test_p2_a_run_is_bit_identical_with_and_without_the_comparison() -> None:
    ends = []
    for compared in (True, False):
        trainer = detector_trainer(toy("DENSE_HEAD", "LANE_HEAD"), BATCHES, KEPT, epochs=2)
        if not compared:
            trainer.hooks = [hook for hook in trainer.hooks if not isinstance(hook, OutputDriftHook)]
        torch.manual_seed(5)
        trainer.run()
        ends.append((tensors_of(trainer.model), trainer.optimizer.state_dict(), torch.get_rng_state()))
    assert_same_state(ends[0], ends[1])


def test_p2_only_tensors_that_are_not_frozen_are_copied() -> None:
    trainer = detector_trainer(toy("DENSE_HEAD", "LANE_HEAD"), BATCHES, KEPT)
    hook = next(hook for hook in trainer.hooks if isinstance(hook, OutputDriftHook))
    hook.before_train(trainer)
    heads = {name.rpartition(".")[0].partition(".")[0] for name in hook._start} - {""}
    assert heads == {"backbone_2d", "lane_head"}
    assert all(name.startswith(("backbone_2d.lane", "lane_head", "global_step")) for name in hook._start)


def test_p2_a_run_with_test_data_compares_on_the_first_test_batch(caplog: Any, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO)
    model = toy("DENSE_HEAD", "LANE_HEAD")
    trainer = detector_trainer(model, BATCHES, KEPT, logger=logging.getLogger("p2"))
    for hook in trainer.hooks:
        hook.take_test_data(Loader([toy_batch(seed=9)]))
    trainer.hooks.append(SummaryHook(tmp_path / "run.json"))
    trainer.run()
    assert "Output drift on the first test batch" in caplog.text
    assert json.loads((tmp_path / "run.json").read_text())["output_drift"]["vfe"]["verdict"] == "identical"


def test_p2_nothing_is_compared_with_parameters_false() -> None:
    assert output_drift(trained(["vfe"], options={"PARAMETERS": False})) == {}


def test_p2_an_output_that_a_later_module_overwrites_is_compared_too() -> None:
    model = toy("DENSE_HEAD", "ROI_HEAD")
    model.roi_head.output = "proposals"
    found = outputs_of(model.eval(), ("dense_head",), toy_batch())["dense_head"]["proposals"]
    batch = toy_batch()
    model(batch)
    assert found.shape == batch["proposals"].shape and not torch.equal(found, batch["proposals"])
