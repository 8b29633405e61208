"""tools/train.py: from a command line to a folder, exactly resumable, and clear where it cannot go on."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tool_runs import CFG, FREEZE, LIST, RANDOM, ROOT, SMALL, folder, tool, train, words

from pcdet_freeze.__main__ import main as command
from pcdet_freeze.datasets.synthetic import SyntheticDataset
from pcdet_freeze.engine import build
from pcdet_freeze.engine.hooks import savings
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.run_context import RunContext, RunFolders, RunOptions
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.utils.distributed import World


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two epochs, with an evaluation."""
    out = tmp_path_factory.mktemp("first")
    assert train(out, "--num_epochs_to_eval", 1) == 0
    return folder(out)


def log_of(run: Path) -> str:
    return "".join(path.read_text() for path in sorted(run.glob("train_*.log")))


def state_of(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def assert_equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


def test_a_run_leaves_openpcdets_folders(first: Path) -> None:
    assert sorted(p.name for p in first.iterdir() if p.suffix != ".log") == [
        "ckpt", "eval", "pointpillar.yaml", "report.html", "report.json", "run.json", "tensorboard",
    ]  # fmt: skip
    assert sorted(p.name for p in (first / "ckpt").iterdir()) == [
        "checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth",
    ]  # fmt: skip
    assert sorted(p.name for p in (first / "eval/eval_with_train/epoch_2/test").iterdir()) == [
        "result.json", "result.pkl",
    ]  # fmt: skip


def test_n2_the_log_says_in_one_line_that_nothing_is_frozen(first: Path) -> None:
    assert log_of(first).count("NOT_TRAIN_IN_MULTI_TASK is empty: nothing is frozen.") == 1


def test_the_log_begins_with_environment_then_config_then_the_freeze(tmp_path: Path) -> None:
    assert train(tmp_path, "--max_iters", 1, sets=FREEZE) == 0
    text = log_of(folder(tmp_path))
    places = [text.index(part) for part in ("torch " + torch.__version__, "config:", "frozen ", "Train: ")]
    assert places == sorted(places)
    assert "norm layers, by vfe, backbone_2d.blocks" in text


class Interrupts(Hook):
    """Ctrl-C after a given iteration."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_step(self, trainer: Any) -> None:
        if trainer.iteration == self.iteration:
            raise KeyboardInterrupt


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Make the next runs stop after iteration N; 0 lets them run."""
    built = build.builtin_hooks

    def at(iteration: int) -> None:
        monkeypatch.setattr(build, "builtin_hooks", lambda *a: [*built(*a), Interrupts(iteration)])

    return at


@pytest.mark.parametrize(
    ("flags", "last"),
    [((), "checkpoint_epoch_1.pth"), (("--ckpt_save_time_interval", 0), "latest_model.pth")],
)
def test_r1_ctrl_c_names_the_checkpoint_and_the_same_command_goes_on_to_the_same_end(
    tmp_path: Path, interrupt: Any, first: Path, flags: tuple[Any, ...], last: str, capsys: Any
) -> None:
    interrupt(5)
    assert train(tmp_path, *flags) == 130
    assert f"resume from {folder(tmp_path) / 'ckpt' / last}" in capsys.readouterr().out
    interrupt(0)
    assert train(tmp_path, *flags) == 0
    name = "ckpt/checkpoint_epoch_2.pth"
    resumed, whole = state_of(folder(tmp_path) / name), state_of(first / name)
    assert_equal(resumed["model_state"], whole["model_state"])
    for index, entry in whole["optimizer_state"]["state"].items():
        assert_equal(resumed["optimizer_state"]["state"][index], entry)


def test_ctrl_c_before_any_checkpoint_says_so(tmp_path: Path, interrupt: Any, capsys: Any) -> None:
    interrupt(1)
    assert train(tmp_path) == 130
    assert "to start from the beginning" in capsys.readouterr().out


def test_the_number_of_loader_processes_changes_nothing(first: Path, tmp_path: Path) -> None:
    assert train(tmp_path, "--workers", 2) == 0
    name = "ckpt/checkpoint_epoch_2.pth"
    assert_equal(state_of(folder(tmp_path) / name)["model_state"], state_of(first / name)["model_state"])


def test_a_second_stage_leaves_what_is_named_to_the_bit_and_verify_says_so(
    first: Path, tmp_path: Path
) -> None:
    before = first / "ckpt" / "checkpoint_epoch_2.pth"
    frozen = [LIST, "[vfe, backbone_2d.blocks]"]
    assert train(tmp_path, "--extra_tag", "stage2", "--pretrained_model", before, sets=frozen) == 0
    after = folder(tmp_path, "stage2") / "ckpt" / "checkpoint_epoch_2.pth"
    assert command(["verify", str(before), str(after)]) == 0
    assert command(["verify", str(before), str(after), "--names", "dense_head"]) == 1
    a, b = state_of(before)["model_state"], state_of(after)["model_state"]
    still = {name for name in a if torch.equal(a[name], b[name])}
    assert {name for name in a if name.startswith(("vfe.", "backbone_2d.blocks."))} <= still
    assert not any(name.startswith(("dense_head.", "backbone_2d.deblocks.")) for name in still)


def test_max_iters_sets_the_length_writes_a_checkpoint_and_evaluates(tmp_path: Path) -> None:
    assert train(tmp_path, "--max_iters", 4, "--num_epochs_to_eval", 1) == 0
    run = folder(tmp_path)
    state = state_of(run / "ckpt" / "checkpoint_epoch_2.pth")
    assert (state["epoch"], state["it"]) == (1, 4)
    assert (run / "eval/eval_with_train/epoch_2/test/result.json").is_file()
    assert train(tmp_path, "--max_iters", 4) == 0
    assert "Resume from" in log_of(run)


def refused(capsys: Any) -> str:
    """What an error told; it is one message, without a traceback."""
    out = capsys.readouterr().out
    assert "Traceback" not in out
    return out.rpartition("ERROR")[2]


BAD = [
    (["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe, backbone_2d.block]"], "backbone_2d.blocks"),
    (["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe, backbone_2d, dense_head]"], "At least one head"),
    (["DATA_CONFIG.DATASET", "KittiDataset", "DATA_CONFIG.DATA_PATH", "/no/such/folder"], "DATA_CONFIG"),
    (["OPTIMIZATION.OPTIMIZER", "lion"], "adam_onecycle, adam, sgd"),
    (["MODEL.NAME", "PointPilar"], "PointPillar"),
]


@pytest.mark.parametrize(("sets", "told"), BAD)
def test_what_cannot_be_used_is_one_message_and_exit_1(
    tmp_path: Path, sets: list[str], told: str, capsys: Any
) -> None:
    assert train(tmp_path, sets=sets) == 1
    assert told in refused(capsys)
    assert not (folder(tmp_path) / "ckpt").exists()


def test_n3_text_of_several_names_in_place_of_the_list_is_an_error(
    tmp_path: Path, capsys: Any, root: Path
) -> None:
    text = (root / "cfgs/synthetic_models/pointpillar.yaml").read_text()
    yaml = tmp_path / "cfgs" / "synthetic_models" / "pointpillar.yaml"
    yaml.parent.mkdir(parents=True)
    yaml.write_text(
        text.replace(
            "    NAME: PointPillar\n",
            "    NAME: PointPillar\n    NOT_TRAIN_IN_MULTI_TASK: vfe, backbone_2d\n",
        )
    )
    code = tool("train").main(
        ["--cfg_file", str(yaml), "--output_dir", str(tmp_path / "out"), "--set", *SMALL]
    )
    assert code == 1 and "list" in refused(capsys)


@pytest.mark.parametrize("flag", ["--ckpt", "--pretrained_model"])
def test_a_checkpoint_of_another_model_is_one_message(
    first: Path, tmp_path: Path, capsys: Any, flag: str
) -> None:
    checkpoint = first / "ckpt" / "checkpoint_epoch_1.pth"
    assert train(tmp_path, flag, checkpoint, sets=["MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 16]"]) == 1
    text = refused(capsys)
    assert "other shape" in text and "backbone_2d.blocks.2.1.weight (8, 8, 3, 3) for (16, 8, 3, 3)" in text


def test_a_broken_newest_checkpoint_is_named_and_the_one_before_it_is_taken(tmp_path: Path) -> None:
    assert train(tmp_path) == 0
    broken = folder(tmp_path) / "ckpt" / "checkpoint_epoch_2.pth"
    broken.write_bytes(broken.read_bytes()[:5000])
    assert train(tmp_path) == 0
    assert (
        f"Skipped the broken {broken}; resuming from {broken.with_name('checkpoint_epoch_1.pth')}"
        in log_of(folder(tmp_path))
    )


def test_a_loss_that_explodes_stops_the_run_and_keeps_the_checkpoints(tmp_path: Path, capsys: Any) -> None:
    assert train(tmp_path) == 0
    blow = ["OPTIMIZATION.LR", "1e30", "OPTIMIZATION.GRAD_NORM_CLIP", "1e30"]
    assert train(tmp_path, "--epochs", 9, sets=blow) == 1
    assert "must be finite" in refused(capsys)
    assert state_of(folder(tmp_path) / "ckpt" / "checkpoint_epoch_2.pth")["it"] == 6


def test_sync_bn_with_live_norm_layers_on_cpu_is_a_named_error(tmp_path: Path, capsys: Any) -> None:
    assert train(tmp_path, "--sync_bn") == 1
    text = refused(capsys)
    assert "--sync_bn needs CUDA" in text and "vfe.pfn_layers.0.norm" in text


def test_h5_sync_bn_on_cpu_is_fine_where_every_norm_layer_is_frozen(tmp_path: Path) -> None:
    frozen = ["MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe, backbone_2d]", *RANDOM]
    assert train(tmp_path, "--sync_bn", "--max_iters", 1, sets=frozen) == 0


def test_amp_trains_on_cpu(tmp_path: Path) -> None:
    assert train(tmp_path, "--use_amp", "--max_iters", 2, sets=FREEZE) == 0


def test_amp_can_be_asked_for_in_the_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # for the base of the config
    text = CFG.read_text().replace("BATCH_SIZE_PER_GPU:", "USE_AMP: True\n    BATCH_SIZE_PER_GPU:")
    (tmp_path / "amp.yaml").write_text(text)
    flags = ["--max_iters", 1, "--batch_size", 2, "--num_epochs_to_eval", 0]
    kinds: list[bool] = []
    monkeypatch.setattr(Hook, "after_train", lambda hook, trainer: kinds.append(trainer.use_amp))
    assert command(["train", *words(tmp_path, *flags, cfg=tmp_path / "amp.yaml")]) == 0
    assert set(kinds) == {True}


@pytest.mark.parametrize("total", [1, 3])
def test_a_batch_that_does_not_divide_is_an_error(total: int, tmp_path: Path) -> None:
    options, two = RunOptions(batch_size=total), World(rank=0, size=2)
    run = RunContext(
        options, {}, two, torch.device("cpu"), RunFolders(tmp_path), logging.getLogger("t"), FreezePlan()
    )
    with pytest.raises(ConfigError, match=f"multiple of the number of processes; got {total} for 2"):
        _ = run.batch_size


def test_a_launcher_without_its_variables_says_how_to_start(
    tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert train(tmp_path, "--launcher", "pytorch") == 1
    assert "torchrun" in refused(capsys)


def test_a_finished_run_that_is_started_again_says_what_is_done_and_what_to_do(tmp_path: Path) -> None:
    assert train(tmp_path, "--epochs", 1) == train(tmp_path, "--epochs", 1) == 0
    log = log_of(folder(tmp_path))
    again = log[log.rindex("Start training") : log.rindex("End training")]
    assert "epoch 1 of 1, 3 iterations" in again and "--epochs" in again and "--extra_tag" in again


def test_a_run_that_is_finished_at_its_iteration_limit_says_so(tmp_path: Path) -> None:
    assert train(tmp_path, "--max_iters", 4) == train(tmp_path, "--max_iters", 4) == 0
    log = log_of(folder(tmp_path))
    again = log[log.rindex("Start training") : log.rindex("End training")]
    assert "limit of 4 iterations" in again and "raise --max_iters" in again and "--extra_tag" in again
    assert "epoch 1 of 2" not in again


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stop_iteration_of_the_data_set_is_no_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, workers: int
) -> None:
    def load_sample(self: Any, index: int) -> Any:
        return next(iter(()))

    monkeypatch.setattr(SyntheticDataset, "load_sample", load_sample)
    assert train(tmp_path, "--workers", workers) == 1
    said = refused(capsys)
    assert "must yield 3 batches" in said and "in load_sample" in said
    assert not (folder(tmp_path) / "ckpt").exists()


def test_a_data_set_whose_labels_are_none_is_trained_on_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load = SyntheticDataset.load_sample
    unlabelled = dict.fromkeys(["lane_map", "point_labels"])
    monkeypatch.setattr(SyntheticDataset, "load_sample", lambda *given: load(*given) | unlabelled)
    assert train(tmp_path, "--epochs", 1) == 0
    assert state_of(folder(tmp_path) / "ckpt" / "checkpoint_epoch_1.pth")["it"] == 3


HOOK_CODE = """
from pcdet_freeze.engine.hooks.base import Hook

class Tells(Hook):
    def __init__(self, every):
        self.every = every

    def after_train(self, trainer):
        trainer.results["told"] = self.every
"""


def test_a_hook_of_ones_own_runs_in_a_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "told_hook.py").write_text(HOOK_CODE)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert train(tmp_path, "--max_iters", 1, sets=["HOOK", "[{NAME: told_hook.Tells, EVERY: 7}]"]) == 0
    assert json.loads((folder(tmp_path) / "run.json").read_text())["told"] == 7


def test_a_hook_with_a_wrong_setting_is_one_message_before_any_data(tmp_path: Path, capsys: Any) -> None:
    assert train(tmp_path, sets=["HOOK", "[{NAME: no_such.Hook}]"]) == 1
    said = refused(capsys)
    assert "--set: HOOK.0" in said and "no_such.Hook cannot be imported" in said
    assert "Training data" not in log_of(folder(tmp_path))


@pytest.mark.parametrize(("flags", "measured"), [([], True), (["--no_savings"], False)])
def test_no_savings_turns_the_measurement_off(
    tmp_path: Path, flags: list[str], measured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(savings, "SHORTEST", 2)
    assert train(tmp_path, "--max_iters", 2, *flags, sets=FREEZE) == 0
    assert ("freezing_saves" in json.loads((folder(tmp_path) / "run.json").read_text())) is measured
