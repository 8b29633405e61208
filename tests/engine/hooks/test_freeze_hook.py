"""MODEL.NOT_TRAIN_IN_MULTI_TASK in the real trainer, and python -m pcdet_freeze verify."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import ToyModel, assert_same_state, tensors_of
from freeze_runs import cfg_of, frozen_trainer, resumed
from grad_scaler import cpu_grad_scaler

from pcdet_freeze.__main__ import main
from pcdet_freeze.engine.checkpoint.io import save_checkpoint
from pcdet_freeze.engine.hooks.base import HOOKS, Hook
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.engine.hooks.freeze import MultiTaskFreezeHook
from pcdet_freeze.engine.hooks.freeze_checks import FreezeChecksHook, OutputDriftHook
from pcdet_freeze.engine.hooks.from_config import hooks_from_cfg
from pcdet_freeze.engine.hooks.frozen_prefix import FrozenPrefixHook
from pcdet_freeze.engine.hooks.savings import SavingsHook
from pcdet_freeze.engine.optim.optimizer import parameter_names
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError, FreezeError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


def test_the_hook_is_registered_and_the_key_turns_it_on() -> None:
    assert HOOKS.get("MultiTaskFreezeHook") is MultiTaskFreezeHook
    hooks = hooks_from_cfg(cfg_of("vfe"), ToyModel())
    assert [type(hook) for hook in hooks] == [
        MultiTaskFreezeHook, FrozenPrefixHook, FreezeChecksHook, OutputDriftHook, SavingsHook]  # fmt: skip


@pytest.mark.parametrize(
    "model_cfg", [{}, {"NOT_TRAIN_IN_MULTI_TASK": None}, {"NOT_TRAIN_IN_MULTI_TASK": []}]
)
def test_n2_without_the_key_nothing_is_frozen(model_cfg: dict[str, Any]) -> None:
    assert hooks_from_cfg({"MODEL": model_cfg}, ToyModel()) == []


@pytest.mark.parametrize("optimizer", ["adam_onecycle", "adam", "sgd"])
def test_p1_what_is_named_stays_to_the_bit_and_the_rest_trains(optimizer: str) -> None:
    trainer = frozen_trainer(optimizer=optimizer)
    before = tensors_of(trainer.model)
    trainer.run()
    after = tensors_of(trainer.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"head.weight", "head.bias", "global_step"}


def test_h7_what_is_frozen_is_in_no_optimizer_group() -> None:
    trainer = frozen_trainer()
    assert parameter_names(trainer.model, trainer.optimizer) == [["head.weight", "head.bias"], []]


def test_the_first_line_says_what_is_frozen() -> None:
    hook, *_ = hooks_from_cfg(cfg_of("vfe"), ToyModel())
    assert "1 norm layer" in hook.describe() and "by vfe" in hook.describe()


class Corrupts(Hook):
    """Changes one number of a frozen tensor at a given place of the loop."""

    def __init__(self, place: str, name: str = "vfe.1.running_mean") -> None:
        self.name = name
        setattr(self, place, self._corrupt)

    def _corrupt(self, trainer: Trainer, *_: Any) -> None:
        if trainer.iteration:
            dict(trainer.model.state_dict())[self.name].view(-1)[0] += 1e-3


@pytest.mark.parametrize(
    ("place", "when"),
    [("after_step", "after the first step"), ("after_epoch", "after epoch 1"), ("after_train", "at the end")],
)
@pytest.mark.parametrize("name", ["vfe.0.weight", "vfe.1.running_mean"])
def test_p1_a_frozen_tensor_that_changes_stops_the_run_by_name(place: str, when: str, name: str) -> None:
    trainer = frozen_trainer([Corrupts(place, name)], epochs=2 if place != "after_train" else 1)
    with pytest.raises(CertificateError, match=rf"{when}[\s\S]*{name}"):
        trainer.run()


def test_p1_the_first_step_is_the_first_one_that_amp_does_not_skip() -> None:
    class CorruptsInTheFirstStep(Hook):
        """Two steps overflow. The third one writes to a frozen tensor."""

        def before_train(self, trainer: Trainer) -> None:
            trainer.clip_norm, trainer.scaler = None, cpu_grad_scaler(2.0)
            head, vfe = trainer.model.head.weight, trainer.model.vfe
            head.register_hook(lambda grad: grad * (float("inf") if trainer.iteration < 2 else 1))
            trainer.optimizer.register_step_post_hook(lambda *_: vfe[0].weight.data.add_(1))

    trainer = frozen_trainer([CorruptsInTheFirstStep()], optimizer="sgd")
    with pytest.raises(CertificateError, match=r"after the first step[\s\S]*vfe\.0\.weight"):
        trainer.run()
    assert trainer.iteration == 3


def test_p1_no_checkpoint_is_written_with_changed_frozen_state(tmp_path: Path) -> None:
    class CorruptsLater(Corrupts):
        def _corrupt(self, trainer: Trainer, *_: Any) -> None:
            if trainer.iteration == 6:
                super()._corrupt(trainer)

    hooks = [CorruptsLater("after_step"), CheckpointHook(tmp_path)]
    with pytest.raises(CertificateError):
        frozen_trainer(hooks).run()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint_epoch_1.pth"]


def test_p1_the_certificate_is_stored_as_plain_data(tmp_path: Path) -> None:
    frozen_trainer([CheckpointHook(tmp_path)], epochs=1).run()
    stored = load_checkpoint(tmp_path / "checkpoint_epoch_1.pth")[CHECKPOINT_KEY]["freeze"]
    assert stored["entries"] == ["vfe"]
    assert sorted(stored["certificate"]["digests"]) == [
        "vfe.0.bias", "vfe.0.weight", "vfe.1.bias", "vfe.1.num_batches_tracked",
        "vfe.1.running_mean", "vfe.1.running_var", "vfe.1.weight",
    ]  # fmt: skip


@pytest.mark.parametrize("iterations", [3, 4, 6])
def test_r1_a_frozen_run_resumed_with_the_same_list_is_equal_to_the_bit(
    tmp_path: Path, iterations: int
) -> None:
    whole = frozen_trainer()
    whole.run()
    frozen_trainer([CheckpointHook(tmp_path)], max_iters=iterations).run()
    (path,) = tmp_path.glob("*.pth") if iterations != 6 else [tmp_path / "checkpoint_epoch_2.pth"]
    second = resumed(path)
    second.run()
    assert_same_state(second.model.state_dict(), whole.model.state_dict())
    assert_same_state(second.optimizer.state_dict(), whole.optimizer.state_dict())


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    frozen_trainer([CheckpointHook(tmp_path)], epochs=1).run()
    return tmp_path / "checkpoint_epoch_1.pth"


def test_h10_a_checkpoint_that_breaks_its_own_certificate_is_refused(saved: Path) -> None:
    state = load_checkpoint(saved)
    state["model_state"]["vfe.1.running_var"][2] += 1
    save_checkpoint(state, saved)
    with pytest.raises(CertificateError, match=r"its own certificate[\s\S]*vfe\.1\.running_var"):
        resumed(saved)


def test_t3_a_list_that_leaves_nothing_to_train_is_an_error_before_the_first_iteration() -> None:
    with pytest.raises(FreezeError, match="trainable parameter"):
        frozen_trainer(cfg=cfg_of("vfe", "head"))


@pytest.mark.parametrize(("parameters", "what"), [(True, "frozen state is"), (False, "norm layers are")])
def test_p1_the_last_line_says_of_what_the_certificate_is(parameters: bool, what: str, caplog: Any) -> None:
    caplog.set_level(logging.INFO)
    cfg = cfg_of("vfe", PARAMETERS=parameters)
    frozen_trainer(cfg=cfg, epochs=1, logger=logging.getLogger("p1")).run()
    assert f"{what} the same as at the start, bit for bit" in caplog.text


# ---------------------------------------------------------------------------------------------- verify


@pytest.fixture
def stages(tmp_path: Path) -> tuple[str, str]:
    """A.pth from before a frozen stage, B.pth from after it."""
    trainer = frozen_trainer([CheckpointHook(tmp_path)], epochs=1)
    save_checkpoint({"model_state": tensors_of(trainer.model)}, tmp_path / "A.pth")
    trainer.run()
    return str(tmp_path / "A.pth"), str(tmp_path / "checkpoint_epoch_1.pth")


def test_p7_verify_takes_the_names_from_b_and_exits_0(stages: tuple[str, str], capsys: Any) -> None:
    assert main(["verify", *stages]) == 0
    assert "EQUAL: 7 stored tensors of vfe are the same, bit for bit." in capsys.readouterr().out


def test_p7_verify_names_what_changed_and_exits_1(stages: tuple[str, str], capsys: Any) -> None:
    assert main(["verify", *stages, "--names", "vfe,head"]) == 1
    assert main(["verify", *stages, "--names", "vfe", "head"]) == 1
    out = capsys.readouterr().out
    assert "head.weight changed" in out and "vfe.0.weight" not in out
    assert "persistent=False" in out


def test_p7_verify_sees_one_flipped_statistic(stages: tuple[str, str], capsys: Any) -> None:
    state = load_checkpoint(stages[0])
    state["model_state"]["vfe.1.num_batches_tracked"] += 1
    save_checkpoint(state, stages[0])
    assert main(["verify", *stages]) == 1
    assert "vfe.1.num_batches_tracked changed" in capsys.readouterr().out


def test_p7_verify_takes_the_names_from_a_config(stages: tuple[str, str], tmp_path: Path) -> None:
    yaml = tmp_path / "m.yaml"
    yaml.write_text("MODEL:\n  NOT_TRAIN_IN_MULTI_TASK: [head]\n")
    assert main(["verify", *stages, "--cfg_file", str(yaml)]) == 1


@pytest.mark.parametrize("words", [["--names", "backbone"], ["--names", ""]])
def test_p7_verify_exits_2_where_the_names_say_nothing(stages: tuple[str, str], words: list[str]) -> None:
    assert main(["verify", *stages, *words]) == 2


def test_p7_verify_exits_2_where_b_names_nothing(stages: tuple[str, str], capsys: Any) -> None:
    assert main(["verify", stages[1], stages[0]]) == 2
    assert "--names vfe,backbone_2d.blocks" in capsys.readouterr().err


def test_p7_verify_exits_2_where_a_file_cannot_be_read(stages: tuple[str, str], tmp_path: Path) -> None:
    (tmp_path / "C.pth").write_bytes(b"")
    assert main(["verify", str(tmp_path / "C.pth"), stages[1]]) == 2


def test_p7_a_file_with_objects_is_compared_only_where_it_is_trusted(
    stages: tuple[str, str], tmp_path: Path
) -> None:
    state = torch.load(stages[1], weights_only=False)
    torch.save({**state, "logger": logging.getLogger("someone")}, tmp_path / "B.pth")
    words = ["verify", stages[0], str(tmp_path / "B.pth")]
    assert main(words) == 2
    assert main([*words, "--trust_checkpoint"]) == 0


def test_p7_with_parameters_false_only_statistics_are_compared(tmp_path: Path) -> None:
    trainer = frozen_trainer([CheckpointHook(tmp_path)], cfg_of("vfe", PARAMETERS=False), epochs=1)
    save_checkpoint({"model_state": tensors_of(trainer.model)}, tmp_path / "A.pth")
    trainer.run()
    assert main(["verify", str(tmp_path / "A.pth"), str(tmp_path / "checkpoint_epoch_1.pth")]) == 0


def test_p7_what_has_no_state_is_no_error_and_is_noted(
    stages: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    """vfe.2 is a ReLU: from B's certificate, from a config, and by a name that the certificate knows."""
    yaml = tmp_path / "m.yaml"
    yaml.write_text("MODEL:\n  NOT_TRAIN_IN_MULTI_TASK: [vfe.2, vfe.0]\n")
    assert main(["verify", *stages, "--cfg_file", str(yaml)]) == 0
    assert "note: vfe.2 has no stored tensor" in capsys.readouterr().out
    assert main(["verify", *stages, "--names", "vfe.2,vfe.0"]) == 2
    assert "'vfe.2' names no module of either checkpoint" in capsys.readouterr().err


def test_p7_an_entry_without_state_does_not_disturb_a_run_and_its_verify(tmp_path: Path, capsys: Any) -> None:
    trainer = frozen_trainer([CheckpointHook(tmp_path)], cfg_of("vfe.2", "vfe.0"), epochs=1)
    save_checkpoint({"model_state": tensors_of(trainer.model)}, tmp_path / "A.pth")
    trainer.run()
    pair = [str(tmp_path / "A.pth"), str(tmp_path / "checkpoint_epoch_1.pth")]
    assert main(["verify", *pair]) == 0
    assert "2 stored tensors of vfe.0 are" in capsys.readouterr().out
    assert main(["verify", *pair, "--names", "vfe.2,vfe.0"]) == 0
    assert main(["verify", *pair, "--names", "vfe.2"]) == 2


def test_p7_a_config_with_parameters_false_or_ignored_buffers_compares_what_it_holds(
    stages: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    state = load_checkpoint(stages[0])
    state["model_state"]["vfe.0.weight"] += 1
    save_checkpoint(state, stages[0])
    yaml = tmp_path / "m.yaml"
    yaml.write_text("MODEL:\n  NOT_TRAIN_IN_MULTI_TASK: [vfe.*]\n  FREEZE: {PARAMETERS: False}\n")
    assert main(["verify", *stages, "--cfg_file", str(yaml)]) == 0
    assert "3 stored tensors" in capsys.readouterr().out
    yaml.write_text("MODEL:\n  NOT_TRAIN_IN_MULTI_TASK: [vfe.*]\n  FREEZE: {IGNORE: [vfe.0.weight]}\n")
    assert main(["verify", *stages, "--cfg_file", str(yaml)]) == 0
    yaml.write_text("MODEL:\n  NOT_TRAIN_IN_MULTI_TASK: [vfe.*]\n")
    assert main(["verify", *stages, "--cfg_file", str(yaml)]) == 1
