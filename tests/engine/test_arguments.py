"""Flags: OpenPCDet's are all taken; numbers that cannot mean anything are refused at once."""

from __future__ import annotations

import pytest

from pcdet_freeze.__main__ import main
from pcdet_freeze.engine.arguments import WITHOUT_EFFECT, idle_flags, test_parser, train_parser

CFG = ["--cfg_file", "x.yaml"]
OPENPCDETS = {
    train_parser: "batch_size epochs workers extra_tag ckpt pretrained_model launcher tcp_port sync_bn "
    "fix_random_seed ckpt_save_interval local_rank max_ckpt_save_num merge_all_iters_to_one_epoch set "
    "max_waiting_mins start_epoch num_epochs_to_eval save_to_file use_tqdm_to_record logger_iter_interval "
    "ckpt_save_time_interval wo_gpu_stat use_amp max_iters output_dir",
    test_parser: "batch_size workers extra_tag ckpt pretrained_model launcher tcp_port local_rank set "
    "max_waiting_mins start_epoch eval_tag eval_all ckpt_dir save_to_file infer_time",
}


@pytest.mark.parametrize("parser", [train_parser, test_parser])
def test_every_flag_of_openpcdet_is_known(parser: object) -> None:
    known = {option for action in parser()._actions for option in action.option_strings}
    assert {f"--{name}" for name in OPENPCDETS[parser].split()} <= known


def test_the_rank_that_older_launchers_pass_is_taken() -> None:
    assert train_parser().parse_args([*CFG, "--local-rank=1"]).local_rank == 1


def test_a_flag_that_changes_nothing_is_told() -> None:
    words = ["--max_waiting_mins", "0", "--merge_all_iters_to_one_epoch"]
    told = idle_flags(train_parser().parse_args([*CFG, *words]))
    assert [line.split()[0] for line in told] == ["--max_waiting_mins", "--merge_all_iters_to_one_epoch"]
    assert idle_flags(train_parser().parse_args(CFG)) == []
    assert all(WITHOUT_EFFECT.values())


@pytest.mark.parametrize(
    "flag",
    ["epochs", "max_iters", "batch_size", "ckpt_save_interval", "max_ckpt_save_num", "logger_iter_interval"],
)
@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5"])
def test_a_number_that_cannot_be_is_refused(flag: str, value: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        train_parser().parse_args([*CFG, f"--{flag}={value}"])
    assert f"--{flag}: must be a whole number, 1 or more; got '{value}'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["digest", "--ckpt", "x.pth", "--batch_size", "0"],
        ["explain", "--batch_size", "0"],
        ["explain", "--depth", "0"],
        ["baselines", "--scenes", "-1"],
        ["prepare", "kitti", "--workers", "0"],
    ],
)
def test_the_other_commands_refuse_it_too(words: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main([*words, *CFG])
    assert f"{words[-2]}: must be a whole number, 1 or more; got '{words[-1]}'" in capsys.readouterr().err
