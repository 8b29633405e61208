"""``pcdet_freeze.train`` and ``evaluate``: the commands, as functions that leave the process as it was."""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_runs import CFG, LIST, SMALL
from two_processes import torchrun

import pcdet_freeze
from pcdet_freeze.__main__ import main
from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.train_api import TrainResult, read_cfg
from pcdet_freeze.errors import CheckpointError, ConfigError, FreezeError

TINY: dict[str, Any] = {
    "DATA_CONFIG.NUM_SCENES": {"train": 4, "test": 2},
    "DATA_CONFIG.SENSOR.BEAMS": "VLP-16",
    "DATA_CONFIG.MIN_CARS": 1,
    "MODEL.BACKBONE_2D.LAYER_NUMS": (1, 1, 1),
    "MODEL.BACKBONE_2D.NUM_FILTERS": [8, 8, 8],
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS": [8, 8, 8],
    "OPTIMIZATION.REPORT_FRAMES": 0,
}
FROZEN = {**TINY, LIST: ["vfe", "backbone_2d.blocks"], "MODEL.FREEZE.ALLOW_RANDOM": True}
FLAGS: dict[str, Any] = {"batch_size": 2, "workers": 0, "device": "cpu", "fix_random_seed": True, "epochs": 2}


def train(out: Path, overrides: dict[str, Any] = TINY, **options: Any) -> TrainResult:
    """Two epochs of two iterations, without evaluation."""
    given = {**FLAGS, "num_epochs_to_eval": 0, **options}
    return pcdet_freeze.train(str(CFG), overrides, output_dir=out, **given)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    return train(tmp_path_factory.mktemp("api"), FROZEN, num_epochs_to_eval=1)


def states_equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_the_result_has_model_files_metrics_losses_and_the_freeze(result: TrainResult) -> None:
    assert result.output_dir.name == "default" and result.checkpoint is not None
    assert result.checkpoint == result.output_dir / "ckpt" / "checkpoint_epoch_2.pth"
    saved = torch.load(result.checkpoint, weights_only=True)["model_state"]
    assert states_equal(saved, result.model.state_dict())
    assert len(result.losses) == 4 and result.loss == result.losses[-1] > 0
    assert "Car_3d/moderate_R40" in result.metrics and result.results["iterations"] == 4
    assert result.freeze is not None and pcdet_freeze.is_frozen(result.model.vfe)
    result.freeze.verify()


def test_the_function_and_the_command_train_the_same_weights(result: TrainResult, tmp_path: Path) -> None:
    words = ["--batch_size", "2", "--workers", "0", "--device", "cpu", "--fix_random_seed", "--epochs", "2"]
    sets = ["DATA_CONFIG.NUM_SCENES.train", "4", "DATA_CONFIG.NUM_SCENES.test", "2", *SMALL[4:], LIST,
            "[vfe, backbone_2d.blocks]", "MODEL.FREEZE.ALLOW_RANDOM", "True"]  # fmt: skip
    assert main(["train", "--cfg_file", str(CFG), "--output_dir", str(tmp_path), *words, "--set", *sets]) == 0
    (file,) = tmp_path.rglob("checkpoint_epoch_2.pth")
    assert states_equal(torch.load(file)["model_state"], result.model.state_dict())


def test_evaluate_returns_the_metrics_of_the_training(result: TrainResult, tmp_path: Path) -> None:
    options = {"batch_size": 2, "workers": 0, "device": "cpu", "output_dir": tmp_path}
    assert pcdet_freeze.evaluate(CFG, result.checkpoint, FROZEN, **options) == result.metrics


def test_two_trainings_in_one_process_are_the_same_and_leave_no_trace(
    result: TrainResult, tmp_path: Path
) -> None:
    def process() -> list[Any]:
        logger, cudnn = logging.getLogger("pcdet_freeze"), torch.backends.cudnn
        return [random.getstate(), torch.get_rng_state().tolist(), cudnn.deterministic, cudnn.benchmark,
                list(logger.handlers), logger.propagate, logger.level]  # fmt: skip

    before = process()
    again = train(tmp_path, FROZEN)
    assert again.losses == result.losses and process() == before


def test_a_config_that_was_read_already_is_not_changed(tmp_path: Path) -> None:
    cfg = cfg_from_yaml_file(CFG)
    before = cfg.DATA_CONFIG.NUM_SCENES.train
    done = pcdet_freeze.train(cfg, TINY, output_dir=tmp_path, max_iters=1, **{**FLAGS, "epochs": None})
    assert cfg.DATA_CONFIG.NUM_SCENES.train == before and done.results["iterations"] == 1
    assert done.output_dir == tmp_path / "synthetic_models" / "pointpillar" / "default"


def test_a_config_without_a_file_goes_by_the_name_of_its_model(tmp_path: Path) -> None:
    cfg = dict(read_cfg(CFG, TINY))
    done = pcdet_freeze.train(cfg, output_dir=tmp_path, max_iters=1, workers=0, num_epochs_to_eval=0)
    assert done.output_dir == tmp_path / "pointpillar" / "default"
    assert "NUM_SCENES" in (done.output_dir / "config.yaml").read_text()


class Interrupts(Hook):
    """Ctrl-C after an iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self, trainer: Any) -> None:
        if trainer.iteration == self.iteration:
            raise KeyboardInterrupt


def test_r1_an_interrupted_call_passes_the_interrupt_on_and_the_same_call_resumes(
    result: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from pcdet_freeze.engine import build

    built = build.builtin_hooks
    monkeypatch.setattr(build, "builtin_hooks", lambda *a: [*built(*a), Interrupts(3)])
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, FROZEN)
    assert "checkpoint_epoch_1.pth (iteration 2)" in capsys.readouterr().out
    monkeypatch.setattr(build, "builtin_hooks", built)
    resumed = train(tmp_path, FROZEN)
    assert resumed.losses == result.losses[2:]
    assert states_equal(resumed.model.state_dict(), result.model.state_dict())


def test_a_complete_run_says_that_nothing_is_left_to_train(tmp_path: Path, capsys: Any) -> None:
    train(tmp_path, epochs=1)
    capsys.readouterr()
    again = train(tmp_path, epochs=1)
    shown = capsys.readouterr().out
    assert "Nothing is left to train: epoch 1 of 1" in shown and "--epochs" in shown
    assert again.losses == [] and again.loss is None and again.checkpoint is not None


def test_ctrl_c_in_the_evaluation_after_a_training_says_that_the_training_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from pcdet_freeze.engine.testing import evaluator

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluator, "_predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path, num_epochs_to_eval=1, epochs=1)
    shown = capsys.readouterr().out
    assert "The training is complete (" in shown and "evaluate that checkpoint" in shown
    assert "resumes" not in shown


def test_ctrl_c_in_an_evaluation_says_that_nothing_was_written(
    result: TrainResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from pcdet_freeze.engine.testing import evaluator

    def interrupted(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluator, "_predict", interrupted)
    flags = ["--output_dir", str(tmp_path), "--workers", "0", "--device", "cpu"]
    words = ["test", "--cfg_file", str(CFG), "--ckpt", str(result.checkpoint), *flags, "--set", *SMALL]
    assert main(words) == 130
    shown = capsys.readouterr()
    assert "No result was written" in shown.out and "resumes" not in shown.out
    assert "Traceback" not in shown.out + shown.err


@pytest.mark.parametrize(
    ("overrides", "options", "error", "text"),
    [
        ({LIST: ["vfee"]}, {}, FreezeError, "vfe"),
        ({"OPTIMIZATION.LRR": 1}, {}, ConfigError, "LRR"),
        ({"OPTIMIZATION.LR": object()}, {}, ConfigError, "OPTIMIZATION.LR"),
        ({"OPTIMIZATION.LR": -1}, {}, ConfigError, "--set"),
        ({}, {"epochs": 0}, ConfigError, "epochs must be"),
        ({}, {"ckpt": "nowhere.pth"}, CheckpointError, "nowhere.pth"),
    ],
)
def test_a_fault_is_an_exception_of_the_package(
    overrides: dict[str, Any], options: dict[str, Any], error: type, text: str, tmp_path: Path
) -> None:
    with pytest.raises(error) as caught:
        train(tmp_path, {**TINY, **overrides}, **options)
    assert text in str(caught.value)


SYNC_BN_WORKER = """
import sys
from pcdet_freeze.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def test_sync_bn_with_two_cpu_processes_is_a_named_error_though_all_norm_layers_are_frozen(
    tmp_path: Path,
) -> None:
    (tmp_path / "worker.py").write_text(SYNC_BN_WORKER)
    frozen = [LIST, "[vfe, backbone_2d]", "MODEL.FREEZE.ALLOW_RANDOM", "True"]
    flags = ["--launcher", "pytorch", "--sync_bn", "--device", "cpu", "--workers", "0", "--max_iters", "1"]
    words = ["train", "--cfg_file", str(CFG), "--output_dir", str(tmp_path), *flags, "--set", *SMALL, *frozen]
    done = torchrun(str(tmp_path / "worker.py"), *words)
    shown = done.stdout + done.stderr
    assert done.returncode != 0 and "--sync_bn needs CUDA with several processes" in shown
    assert "ValueError" not in shown


def test_an_unknown_option_is_a_type_error(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="epoch"):
        train(tmp_path, epoch=1)


def test_overrides_take_python_values() -> None:
    cfg = read_cfg(CFG, {"OPTIMIZATION.LR": 1e-5, "MODEL.FREEZE.CACHE": Path("a"), LIST: ("vfe", "*.1")})
    assert cfg.OPTIMIZATION.LR == 1e-5 and cfg.MODEL.FREEZE.CACHE == "a"
    assert list(cfg.MODEL.NOT_TRAIN_IN_MULTI_TASK) == ["vfe", "*.1"]


@pytest.mark.parametrize(
    ("cfg", "overrides", "words"),
    [
        (None, None, ["cfg must be", "None"]),
        ([1], None, ["cfg must be", "[1]"]),
        ({}, "OPTIMIZATION.LR 1", ["overrides must be", "OPTIMIZATION.LR"]),
        ({}, 5, ["overrides must be", "5"]),
        ({}, {1: 2}, ["overrides must be", "{1: 2}"]),
        ({}, ["OPTIMIZATION.LR", 0.1], ["overrides must be", "0.1"]),
    ],
)
def test_arguments_of_another_type_are_an_error_that_names_them(
    cfg: Any, overrides: Any, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        read_cfg(cfg, overrides)
    assert [word for word in words if word not in str(caught.value)] == []


def test_the_lines_in_the_readme_run(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = (root / "README.md").read_text().split("```python\n")[1:]
    (code,) = [block.partition("```")[0] for block in blocks if "pcdet_freeze.train(" in block]
    assert len([line for line in code.splitlines() if line]) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["metrics"] == names["second"].metrics
    trunk = {
        n: v for n, v in names["first"].model.state_dict().items() if n.startswith(("vfe.", "backbone_2d."))
    }
    after = names["second"].model.state_dict()
    assert trunk and states_equal(trunk, {name: after[name] for name in trunk})
