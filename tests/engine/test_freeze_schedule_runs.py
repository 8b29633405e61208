"""FREEZE.SCHEDULE in the real trainer: parts begin to train, with fresh state; a resume changes nothing."""

from __future__ import annotations

import logging
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from freeze_runs import SaveEach, cfg_of, frozen_trainer, phase, resumed
from torch import nn
from toy_parts import toy, toy_batch

from pcdet_freeze.engine.build import check_sync_bn
from pcdet_freeze.engine.checkpoint.io import save_checkpoint
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.optim.optimizer import parameter_names
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError, ConfigError, FreezeError
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

SCHEDULED = cfg_of("vfe", SCHEDULE=[phase(1, "vfe.[13]", LR_SCALE=0.1), phase(2, "vfe.0", LR_SCALE=0.5)])
KINDS = ["adam_onecycle", "adam", "sgd"]


class Looks(Hook):
    """Calls ``look(trainer)`` after each step; keeps what it returns."""

    def __init__(self, look: Any) -> None:
        self.look, self.seen = look, []

    def after_step(self, trainer: Trainer) -> None:
        self.seen.append(self.look(trainer))


def moving(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {n for n in before if not torch.equal(before[n], after[n])} - {"global_step"}


HEAD = {"head.weight", "head.bias"}
NORM = {"vfe.1.weight", "vfe.1.bias", "vfe.1.running_mean", "vfe.1.running_var", "vfe.1.num_batches_tracked"}


@pytest.mark.parametrize("optimizer", KINDS)
def test_r3_each_part_trains_from_its_epoch_on_and_not_before(optimizer: str) -> None:
    look = Looks(lambda trainer: tensors_of(trainer.model))
    trainer = frozen_trainer([look], SCHEDULED, epochs=3, optimizer=optimizer)
    states = [tensors_of(trainer.model), *look.seen]
    trainer.run()
    states = [states[0], *look.seen]
    moved = [moving(a, b) for a, b in pairwise(states)]
    assert moved[:4] == [HEAD] * 4
    assert moved[4:8] == [HEAD | NORM] * 4
    assert moved[8:] == [HEAD | NORM | {"vfe.0.weight", "vfe.0.bias"}] * 4


@pytest.mark.parametrize("optimizer", KINDS)
def test_r3_what_enters_gets_its_multiple_of_the_learning_rate(optimizer: str) -> None:
    def rates(trainer: Trainer) -> dict[str, float]:
        names = parameter_names(trainer.model, trainer.optimizer)
        groups = zip(names, trainer.optimizer.param_groups, strict=True)
        return {name: group["lr"] / trainer.lr for group_names, group in groups for name in group_names}

    look = Looks(rates)
    frozen_trainer([look], SCHEDULED, epochs=3, optimizer=optimizer).run()
    assert look.seen[3] == dict.fromkeys(HEAD, 1.0)
    norm = {"vfe.1.weight": 0.1, "vfe.1.bias": 0.1}
    assert look.seen[4] == pytest.approx({**dict.fromkeys(HEAD, 1.0), **norm})
    assert look.seen[8] == pytest.approx(
        {**dict.fromkeys(HEAD, 1.0), **norm, "vfe.0.weight": 0.5, "vfe.0.bias": 0.5}
    )


@pytest.mark.parametrize("optimizer", KINDS)
def test_r3_learning_rate_and_momentum_go_on_over_the_switch(optimizer: str) -> None:
    def settings(trainer: Trainer) -> list[tuple[Any, ...]]:
        keys = ("lr", "betas", "momentum", "weight_decay")
        groups = [[group.get(key) for key in keys] for group in trainer.optimizer.param_groups]
        scales = [group.get("lr_scale", 1.0) for group in trainer.optimizer.param_groups]
        assert [lr for lr, *_ in groups] == [trainer.lr * scale for scale in scales]
        return [trainer.lr, *{tuple(rest) for _, *rest in groups}]

    looks = [Looks(settings), Looks(settings)]
    for look, cfg in zip(looks, (SCHEDULED, cfg_of("vfe")), strict=True):
        frozen_trainer([look], cfg, epochs=3, optimizer=optimizer).run()
    assert looks[0].seen == looks[1].seen and len(looks[0].seen) == 12
    assert all(len(seen) == 2 for seen in looks[0].seen)  # one momentum and one decay for all groups


def test_r3_what_enters_starts_with_fresh_state_and_the_rest_keeps_its_own() -> None:
    def steps(trainer: Trainer) -> dict[str, int]:
        named = trainer.model.named_parameters()
        return {n: int(trainer.optimizer.state[p]["step"]) for n, p in named if p in trainer.optimizer.state}

    look = Looks(steps)
    frozen_trainer([look], SCHEDULED, epochs=3).run()
    assert look.seen[4] == {"vfe.1.weight": 1, "vfe.1.bias": 1, "head.weight": 5, "head.bias": 5}
    assert look.seen[11] == {
        "vfe.0.weight": 4, "vfe.0.bias": 4, "vfe.1.weight": 8, "vfe.1.bias": 8, "head.weight": 12,
        "head.bias": 12,
    }  # fmt: skip


def test_r3_until_the_first_phase_a_run_is_the_same_as_without_a_schedule() -> None:
    looks = [Looks(lambda trainer: tensors_of(trainer.model)) for _ in range(2)]
    for look, cfg in zip(looks, (SCHEDULED, cfg_of("vfe")), strict=True):
        frozen_trainer([look], cfg, epochs=3).run()
    assert_same_state(looks[0].seen[3], looks[1].seen[3])
    assert moving(looks[0].seen[4], looks[1].seen[4])


def test_r3_an_unscaled_part_goes_to_the_common_groups() -> None:
    trainer = frozen_trainer(cfg=cfg_of("vfe", SCHEDULE=[phase(1, "vfe")]))
    trainer.run()
    plain = frozen_trainer(cfg=cfg_of())
    assert parameter_names(trainer.model, trainer.optimizer) == parameter_names(plain.model, plain.optimizer)
    assert type(trainer.model.vfe[1]) is nn.BatchNorm1d and trainer.model.vfe[3].training


def test_r3_with_parameters_false_layers_are_let_go_and_every_state_stays() -> None:
    look = Looks(
        lambda trainer: (int(trainer.model.vfe[1].num_batches_tracked), len(trainer.optimizer.state))
    )
    frozen_trainer([look], cfg_of("vfe", PARAMETERS=False, SCHEDULE=[phase(1, "vfe")])).run()
    assert look.seen == [(0, 6)] * 4 + [(n, 6) for n in range(1, 5)]


@pytest.fixture(scope="module", params=KINDS)
def whole(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, Trainer]:
    """(optimizer, folder, a run without a break that saved after every step)."""
    folder = tmp_path_factory.mktemp(request.param)
    trainer = frozen_trainer([SaveEach(folder)], SCHEDULED, epochs=3, optimizer=request.param)
    trainer.run()
    return request.param, folder, trainer


PLACES = ["it2", "it4", "epoch1", "it5", "it6", "it8", "epoch2", "it9", "it11", "epoch3"]


@pytest.mark.parametrize("place", PLACES)
def test_r1_a_run_resumed_in_any_phase_ends_as_one_without_a_break(whole: Any, place: str) -> None:
    optimizer, folder, first = whole
    second = resumed(folder / f"{place}.pth", SCHEDULED, epochs=3, optimizer=optimizer)
    second.run()
    assert_same_state(tensors_of(second.model), tensors_of(first.model))
    assert_same_state(second.optimizer.state_dict(), first.optimizer.state_dict())
    names = [parameter_names(trainer.model, trainer.optimizer) for trainer in (first, second)]
    assert names[0] == names[1]


def test_r1_a_resume_in_a_phase_says_that_all_state_was_kept(whole: Any, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    resumed(whole[1] / "it6.pth", SCHEDULED, epochs=3, optimizer=whole[0])
    assert (
        "kept         4" in caplog.text
        and "dropped      0" in caplog.text
        and "new          0" in caplog.text
    )
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize(
    ("place", "digests"), [("it4", 7), ("epoch1", 7), ("it5", 2), ("epoch2", 2), ("it9", 0)]
)
def test_p1_the_stored_certificate_is_of_what_was_frozen_then(whole: Any, place: str, digests: int) -> None:
    stored = load_checkpoint(whole[1] / f"{place}.pth")[CHECKPOINT_KEY]["freeze"]
    assert len(stored["certificate"]["digests"]) == digests
    assert stored["entries"] == ["vfe"]
    assert stored["schedule"][0] == {"EPOCH": 1, "TRAIN": ["vfe.[13]"], "LR_SCALE": 0.1}


def test_p1_the_renewed_certificate_says_the_same_of_what_stays_frozen(whole: Any) -> None:
    stored = [
        load_checkpoint(whole[1] / f"{place}.pth")[CHECKPOINT_KEY]["freeze"]["certificate"]
        for place in ("it2", "it6")
    ]
    before, after = (certificate["digests"] for certificate in stored)
    assert set(after) == {"vfe.0.weight", "vfe.0.bias"}
    assert after == {name: before[name] for name in after}


HELD = [("it4", "vfe.1.bias", True), ("it5", "vfe.1.bias", False), ("it6", "vfe.0.bias", True),
        ("it9", "vfe.0.bias", False)]  # fmt: skip


@pytest.mark.parametrize(("place", "name", "told"), HELD)
def test_h10_a_resume_compares_what_was_frozen_in_that_phase(
    whole: Any, tmp_path: Path, place: str, name: str, told: bool
) -> None:
    state = load_checkpoint(whole[1] / f"{place}.pth")
    state["model_state"][name][0] += 1
    save_checkpoint(state, tmp_path / "x.pth")
    try:
        resumed(tmp_path / "x.pth", SCHEDULED, epochs=3, optimizer=whole[0])
    except CertificateError as error:
        assert told and name in str(error)
    else:
        assert not told


class Corrupts(Hook):
    """Changes a part that is still frozen, in iteration ``at``."""

    def __init__(self, at: int) -> None:
        self.at = at

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == self.at:
            trainer.model.vfe[0].weight.data[0] += 1


@pytest.mark.parametrize(
    ("at", "when"), [(2, "after epoch 1"), (5, "after the first step"), (6, "after epoch 2")]
)
def test_p1_what_stays_frozen_is_proved_in_every_phase(at: int, when: str) -> None:
    with pytest.raises(CertificateError, match=rf"{when}[\s\S]*vfe\.0\.weight"):
        frozen_trainer([Corrupts(at)], SCHEDULED, epochs=3).run()


def test_p1_a_change_between_an_epoch_and_the_phase_after_it_is_found() -> None:
    class Between(Hook):
        def before_epoch(self, trainer: Trainer) -> None:
            if trainer.epoch == 1:
                trainer.model.vfe[1].bias.data[0] += 1

    with pytest.raises(CertificateError, match=r"before epoch 2, at the start[\s\S]*vfe\.1\.bias"):
        frozen_trainer([Between()], SCHEDULED, epochs=3).run()


def test_r3_the_log_says_what_will_begin_and_what_began(caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    frozen_trainer(cfg=SCHEDULED, epochs=3).run()
    line = "after 1 epoch, vfe.[13] begins to train (2 parameter tensors, learning rate x 0.1)"
    assert f"  schedule: {line}" in caplog.text and f"Epoch 2: {line}" in caplog.text
    assert (
        "Epoch 3: after 2 epochs, vfe.0 begins to train (2 parameter tensors, learning rate x 0.5)"
        in caplog.text
    )
    assert "2 parameter tensors keep theirs, 2 start with a fresh one. Certificate renewed." in caplog.text
    assert "Certificate intact" not in caplog.text  # nothing is frozen at the end


def test_r3_a_schedule_that_cannot_be_is_an_error_before_anything_is_frozen() -> None:
    model = ToyModel()
    wrong = cfg_of("vfe", SCHEDULE=[phase(1, "head"), phase(1, "vef"), phase(3, "vfe.0")])
    with pytest.raises(FreezeError) as caught:
        frozen_trainer(cfg=wrong, model=model, epochs=3)
    text = str(caught.value)
    assert "nothing in 'head' is frozen" in text and "'vef' names no module" in text and "a run of 3" in text
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_r3_a_layer_that_becomes_live_on_cpu_as_syncbn_is_an_error_at_the_start() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(ToyModel())
    plans = [FreezePlan.from_cfg(cfg) for cfg in (cfg_of("vfe"), SCHEDULED)]
    freeze(model, plans[0])
    check_sync_bn(model, torch.device("cpu"), plans[0])
    with pytest.raises(ConfigError, match=r"--sync_bn needs CUDA[\s\S]*vfe\.1"):
        check_sync_bn(model, torch.device("cpu"), plans[1])


class Batches(list):
    """Two new batches an epoch."""

    def __iter__(self) -> Any:
        return iter([toy_batch("label", "lane_label", seed=seed) for seed in range(2)])


def with_two_heads(hooks: Any, *phases: Any) -> Trainer:
    cfg = cfg_of("vfe", "dense_head", "backbone_2d.deblocks", SCHEDULE=list(phases))
    trainer = frozen_trainer(hooks, cfg, model=toy("DENSE_HEAD", "LANE_HEAD"), epochs=2)
    trainer.loader, trainer.epoch_length, trainer.sampler = Batches([0, 1]), 2, None
    return trainer


def test_h11_what_begins_to_train_without_a_loss_is_an_error_before_its_first_step() -> None:
    trainer = with_two_heads((), phase(1, "backbone_2d.deblocks"))
    with pytest.raises(FreezeError, match=r"no loss depends on[\s\S]*backbone_2d\.deblocks"):
        trainer.run()
    assert trainer.iteration == 2


def test_h3_in_a_run_resumed_where_a_phase_begins_the_first_forward_is_looked_at(tmp_path: Path) -> None:
    class Rogue(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.dropout(x, 0.5, self.training))

    frozen_trainer([SaveEach(tmp_path)], SCHEDULED, epochs=3).run()
    model = ToyModel()
    model.vfe[0] = Rogue(4, 8)
    with pytest.raises(FreezeError, match=r"vfe\.0 \(Rogue\)"):
        resumed(tmp_path / "epoch1.pth", SCHEDULED, model=model, epochs=3).run()


def test_t1_a_head_that_enters_later_gives_its_loss_from_then_on() -> None:
    look = Looks(lambda trainer: (sorted(trainer.tb_dict), len(trainer.model.dense_head.calls)))
    trainer = with_two_heads([look], phase(1, "dense_head", "backbone_2d.deblocks"))
    before = tensors_of(trainer.model)
    trainer.run()
    assert look.seen[:2] == [(["loss_lane_head"], 0)] * 2
    assert look.seen[2:] == [(["loss_lane_head", "loss_rpn"], 1), (["loss_lane_head", "loss_rpn"], 2)]
    moved = moving(before, tensors_of(trainer.model))
    assert {n.split(".")[0] for n in moved} == {"backbone_2d", "dense_head", "lane_head"}
