"""The same freeze inside an unmodified OpenPCDet.

```
python -m pcdet_freeze.openpcdet tools/train.py --cfg_file tools/cfgs/kitti_models/pv_rcnn.yaml ...
torchrun --nproc_per_node=8 -m pcdet_freeze.openpcdet tools/train.py --launcher pytorch --cfg_file ...
python -m pcdet_freeze.openpcdet explain --cfg_file tools/cfgs/kitti_models/pv_rcnn.yaml
python -m pcdet_freeze.openpcdet verify A.pth B.pth
python -m pcdet_freeze.openpcdet --task my_head.py tools/train.py --cfg_file ...     # a head of your own
```

In a script of your own:

```
import pcdet_freeze.openpcdet as freezing
freezing.install()                            # before build_network
model = build_network(model_cfg=cfg.MODEL, num_class=..., dataset=...)
...                                           # load weights, build the optimizer
freezing.begin(model, optimizer)              # in a training loop of your own, before its first step
freezing.verify(model)                        # at its end, and whenever you like
```

OpenPCDet's ``train_model`` needs ``install`` only. ``add_task`` adds a task head to OpenPCDet's detectors.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcdet_freeze.errors import ConfigError, PCDetFreezeError
from pcdet_freeze.integrations.openpcdet.command.run_script import run_script, where_to_start
from pcdet_freeze.integrations.openpcdet.plugin import begin, install, uninstall, verify
from pcdet_freeze.utils.terminal import columns, paint, wrap

if TYPE_CHECKING:
    from pcdet_freeze.integrations.openpcdet.tasks.registry import add_task

__all__ = ["add_task", "begin", "install", "uninstall", "verify"]

PROG = "python -m pcdet_freeze.openpcdet"
USAGE = f"""usage: {PROG} [--task FILE ...]
       (SCRIPT [ARGUMENTS ...] | explain ... | verify A.pth B.pth)"""
CFG_FILE = "--cfg_file tools/cfgs/kitti_models/pointpillar.yaml"
EXAMPLES = (
    ("train; MODEL.NOT_TRAIN_IN_MULTI_TASK in the config names what is frozen", f"tools/train.py {CFG_FILE}"),
    ("show what that config freezes, without training", f"explain {CFG_FILE}"),
)
EXPLAIN_EXAMPLES = (
    ("what a config freezes, and what its losses reach", CFG_FILE),
    ("the same with another list", f"{CFG_FILE} --set MODEL.NOT_TRAIN_IN_MULTI_TASK vfe,backbone_2d"),
)
VERIFY_EXAMPLES = (
    ("is all that B was trained with frozen still as in A?", "before.pth after.pth"),
    ("compare these modules only", "before.pth after.pth --names vfe,backbone_2d"),
)
"""(what it does, the words behind the command)"""
EXPLAIN_HELP = "Show what a training in OpenPCDet would freeze, without training."


def __getattr__(name: str) -> Any:
    if name != "add_task":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pcdet_freeze.integrations.openpcdet.tasks import registry  # a run without a task does not need it

    return registry.add_task


def main(argv: Sequence[str] | None = None) -> int:
    """Run a script of OpenPCDet with the plugin, or a command; returns the exit code."""
    args = _with_rank_last(list(sys.argv[1:] if argv is None else argv))
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0 if args else 2
    try:
        args = _load_tasks(args)
        if args[0] in ("explain", "verify"):
            return _run_command(args[0], args[1:])
        run_script(args)
    except PCDetFreezeError as error:
        _report(error)
        return 1
    return 0


def _report(error: PCDetFreezeError) -> None:
    print(f"{paint(type(error).__name__, 'red', sys.stderr)}: {error}", file=sys.stderr)


def _help() -> str:
    from pcdet_freeze.cli.common.help import examples_text  # a training does not need it

    found = Path("tools/train.py").is_file()  # the examples can be run here
    start = [] if found else ["", *wrap(where_to_start(), columns())]
    return "\n".join([f"{examples_text(PROG, EXAMPLES)}\n\n{USAGE}", *start])


def _with_rank_last(words: list[str]) -> list[str]:
    """``torch.distributed.launch`` puts ``--local-rank=N`` before the script: give it to the script."""
    if not words or not (rank := re.fullmatch(r"--local[-_]rank=(\d+)", words[0])):
        return words
    return [*words[1:], f"--local_rank={rank.group(1)}"]


def _load_tasks(argv: Sequence[str]) -> list[str]:
    """Import the files of the leading ``--task FILE``; returns the other words."""
    from pcdet_freeze.integrations.openpcdet.tasks.task_file import load_task_file, take_task_files

    files, words = take_task_files(argv)
    for file in files:
        load_task_file(file)
    if not words:
        raise ConfigError(f"A script or a command must follow --task. {USAGE}")
    return words


def _run_command(name: str, argv: Sequence[str]) -> int:
    """Run ``explain`` or ``verify``; Ctrl-C is one line and exit code 130."""
    try:
        return run_verify(argv) if name == "verify" else run_explain(argv)
    except KeyboardInterrupt:
        print(f"\n{PROG} {name}: interrupted", file=sys.stderr)
        return 130


def run_verify(argv: Sequence[str]) -> int:
    """Compare the frozen state of two checkpoints; 0 equal, 1 changed, 2 cannot tell."""
    from pcdet_freeze.cli import verify as command  # a training does not need it
    from pcdet_freeze.cli.arguments import verify as flags
    from pcdet_freeze.cli.common.help import CommandParser

    parser = CommandParser(VERIFY_EXAMPLES, prog=f"{PROG} verify", description=flags.__doc__)
    flags.add_arguments(parser)
    args = parser.parse_args(argv)
    try:
        return command.run(args)
    except PCDetFreezeError as error:
        _report(error)
        return command.ERROR_CODE


def run_explain(argv: Sequence[str]) -> int:
    """Print the table of a config; 1 if a training with it would raise an error."""
    # a training does not need it: it imports the trainer's explain
    from pcdet_freeze.cli.common.help import CommandParser
    from pcdet_freeze.cli.explain import print_table
    from pcdet_freeze.integrations.openpcdet.command import explain

    parser = CommandParser(EXPLAIN_EXAMPLES, prog=f"{PROG} explain", description=EXPLAIN_HELP)
    explain.add_arguments(parser)
    args = parser.parse_args(argv)
    found, source = explain.gather(args)
    if args.json:
        print(json.dumps({"cfg_file": args.cfg_file, "batch": source, **found.to_plain()}, indent=1))
    else:
        print_table(found, ["random weights", source], columns())
    return 1 if found.problems else 0


if __name__ == "__main__":
    sys.exit(main())
