"""The command of a report trains the same config again."""

from __future__ import annotations

import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tool_runs import CFG, SMALL

from pcdet_freeze.cli.arguments.train import add_arguments
from pcdet_freeze.config import load_cfg, plain
from pcdet_freeze.engine.rerun import check_commands, rerun_command
from pcdet_freeze.engine.run_context import RunFolders, TrainOptions
from pcdet_freeze.engine.train_api import read_cfg
from pcdet_freeze.utils.distributed import World

SETS = [*SMALL, "MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe, 'backbone_2d.blocks*']", "OPTIMIZATION.LR", "0.02",
        "DATA_CONFIG.CACHE", "a b", "DATA_CONFIG.CACHE", '"null"', "MODEL.NAME", '"1e-3"',
        "OPTIMIZATION.EVALUATE_START", "True",
        "EVALUATION", "{IOU: {Car: 0.5}}", "MODEL.FREEZE", "{CACHE: null, EVAL: [vfe]}"]  # fmt: skip


def context(cfg: Any, ranks: int = 1, **options: Any) -> Any:
    return SimpleNamespace(
        cfg=cfg, options=TrainOptions(**options), world=World(0, ranks, 0), folders=RunFolders(Path("out/x"))
    )


def parsed(command: str, words: int = 2) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return parser.parse_args(shlex.split(command)[words:])


def test_the_command_has_all_flags_that_are_not_the_default() -> None:
    command = rerun_command(context(load_cfg(CFG), batch_size=2, use_amp=True, extra_tag="a b", max_iters=7))
    args = parsed(command)
    assert command.startswith("pcdet-freeze train --cfg_file ")
    assert (args.batch_size, args.use_amp, args.extra_tag, args.max_iters) == (2, True, "a b", 7)
    assert "--workers" not in command and args.set_cfgs == []


@pytest.mark.parametrize("number", range(0, len(SETS), 2))
def test_the_command_gives_the_config_that_was_used(number: int) -> None:
    cfg = load_cfg(CFG, SETS[number : number + 2])
    args = parsed(rerun_command(context(cfg)))
    assert plain(load_cfg(args.cfg_file, args.set_cfgs)) == plain(cfg)


def test_all_changes_together_and_those_made_from_python_are_in_it() -> None:
    cfg = read_cfg(CFG, {"OPTIMIZATION.LR": 0.5, "DATA_CONFIG.NUM_SCENES": {"train": 4, "test": 2}})
    args = parsed(rerun_command(context(cfg)))
    assert plain(load_cfg(args.cfg_file, args.set_cfgs)) == plain(cfg)


def test_a_config_without_a_file_is_read_from_its_copy_in_the_runs_folder() -> None:
    args = parsed(rerun_command(context(read_cfg(dict(load_cfg(CFG))))))
    assert args.cfg_file == str(Path("out/x/config.yaml").resolve()) and args.set_cfgs == []


def test_several_processes_are_started_by_their_launcher() -> None:
    cfg = load_cfg(CFG)
    torchrun = rerun_command(context(cfg, ranks=4, launcher="pytorch"))
    assert torchrun.startswith("torchrun --nproc_per_node=4 -m pcdet_freeze train --launcher pytorch ")
    assert rerun_command(context(cfg, ranks=8, launcher="slurm")).startswith(
        "srun --ntasks=8 pcdet-freeze train"
    )


def test_the_check_compares_the_pretrained_checkpoint_with_the_last_one() -> None:
    assert check_commands("a b.pth", Path("c.pth"), True) == ["pcdet-freeze verify 'a b.pth' c.pth"]
    assert check_commands(None, Path("c.pth"), True) == check_commands("a.pth", None, True) == []
    assert check_commands("a.pth", Path("c.pth"), False) == []
