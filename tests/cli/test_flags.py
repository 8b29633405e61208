"""Flags: OpenPCDet's are all accepted; numbers out of range are refused at once."""

from __future__ import annotations

import argparse
from dataclasses import fields
from importlib import import_module

import pytest

from pcdet_freeze.__main__ import main
from pcdet_freeze.cli import test as test_command
from pcdet_freeze.cli import train as train_command
from pcdet_freeze.cli.arguments.train import IGNORED
from pcdet_freeze.cli.train import ignored_flags
from pcdet_freeze.engine.run_context import EvalOptions, TrainOptions

CFG = ["--cfg_file", "x.yaml"]
OPENPCDETS = {
    "train": "batch_size epochs workers extra_tag ckpt pretrained_model launcher tcp_port sync_bn "
    "fix_random_seed ckpt_save_interval local_rank max_ckpt_save_num merge_all_iters_to_one_epoch set "
    "max_waiting_mins start_epoch num_epochs_to_eval save_to_file use_tqdm_to_record logger_iter_interval "
    "ckpt_save_time_interval wo_gpu_stat use_amp max_iters output_dir",
    "test": "batch_size workers extra_tag ckpt pretrained_model launcher tcp_port local_rank set "
    "max_waiting_mins start_epoch eval_tag eval_all ckpt_dir save_to_file infer_time",
}


def parser_of(command: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser()
    import_module(f"pcdet_freeze.cli.arguments.{command}").add_arguments(parser)
    return parser


@pytest.mark.parametrize("command", OPENPCDETS)
def test_every_flag_of_openpcdet_is_known(command: str) -> None:
    known = {option for action in parser_of(command)._actions for option in action.option_strings}
    assert {f"--{name}" for name in OPENPCDETS[command].split()} <= known


@pytest.mark.parametrize(("command", "options"), [(train_command, TrainOptions), (test_command, EvalOptions)])
def test_every_option_has_a_flag_with_the_same_default(command: object, options: type) -> None:
    args = parser_of(command.__name__.rpartition(".")[2]).parse_args(CFG)  # type: ignore[attr-defined]
    given = {field.name for field in fields(options)} - {"notes"}
    assert {name: getattr(args, name) for name in given} == {name: getattr(options(), name) for name in given}


@pytest.mark.parametrize("command", ["train", "test", "explain", "verify", "digest", "stitch"])
def test_every_command_that_reads_a_checkpoint_can_be_told_to_trust_it(command: str) -> None:
    known = {option for action in parser_of(command)._actions for option in action.option_strings}
    assert "--trust_checkpoint" in known


def test_the_rank_that_older_launchers_pass_is_accepted() -> None:
    assert parser_of("train").parse_args([*CFG, "--local-rank=1"]).local_rank == 1


def test_a_flag_without_effect_is_reported() -> None:
    words = ["--max_waiting_mins", "0", "--merge_all_iters_to_one_epoch"]
    lines = ignored_flags(parser_of("train").parse_args([*CFG, *words]))
    assert [line.split()[0] for line in lines] == ["--max_waiting_mins", "--merge_all_iters_to_one_epoch"]
    assert ignored_flags(parser_of("train").parse_args(CFG)) == []
    assert all(IGNORED.values())


def test_flags_after_set_belong_to_set() -> None:
    words = ["OPTIMIZATION.LR", "-1", "--epochs", "2"]
    assert parser_of("test").parse_args([*CFG, "--set", *words]).set_cfgs == words


@pytest.mark.parametrize(
    "flag",
    ["epochs", "max_iters", "batch_size", "ckpt_save_interval", "max_ckpt_save_num", "logger_iter_interval"],
)
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_number_out_of_range_is_refused(flag: str, value: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        parser_of("train").parse_args([*CFG, f"--{flag}={value}"])
    assert f"--{flag}: must be a whole number, 1 or more; got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["digest", "--ckpt", "x.pth", "--batch_size", "0"],
        ["explain", "--batch_size", "0"],
        ["explain", "--depth", "0"],
        ["bench", "--scenes", "-1"],
        ["prepare", "kitti", "--workers", "0"],
        ["train", "--epochs", "0"],
    ],
)
def test_other_commands_refuse_it_too(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main([*words, *CFG])
    assert f"{words[-2]}: must be a whole number, 1 or more; got '{words[-1]}'" in capsys.readouterr().err
