# PYTHON_ARGCOMPLETE_OK: global completion looks for this mark at the beginning of the file
"""``pcdet-freeze <command> ...`` and ``python -m pcdet_freeze <command> ...``: a file of ``cli`` each.

Few modules are imported here: Ctrl-C prints a traceback until ``main`` runs.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import select
import signal
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from pcdet_freeze import __version__
from pcdet_freeze.cli.common.help import STAGE1, STAGE2, CommandParser, Examples
from pcdet_freeze.cli.common.program_signals import ProgramSignals
from pcdet_freeze.errors import PCDetFreezeError
from pcdet_freeze.utils.signals.interrupts import HeldInterrupt
from pcdet_freeze.utils.signals.stop_signals import end_process

INTERRUPTED, USAGE, SIGNALLED = 130, 2, 128


COMMANDS = {
    "train": "train a model, with the modules of MODEL.NOT_TRAIN_IN_MULTI_TASK frozen",
    "test": "evaluate checkpoints",
    "demo": "predict point files and write pictures",
    "three-stages": "train detection, then segmentation, then lanes, and compare",
    "overfit": "train three stages on few frames and compare each task with what the labels allow",
    "prepare": "write the info files of a data set",
    "check-data": "read every frame and report what does not fit config, model or pretrained checkpoint",
    "explain": "show what a config freezes and which modules each loss reaches, without training",
    "suggest": "print the shortest freeze list that keeps the outputs of given heads",
    "verify": "compare the frozen state of two checkpoints",
    "compare": "compare runs: frozen modules, metrics, cost, config keys",
    "doctor": "look for problems before a training: packages, machine, config, data",
    "stitch": "join heads that were trained separately on one frozen trunk",
    "digest": "print digests of a checkpoint's outputs over the test frames",
    "export": "write a network as ONNX and compare it with torch",
    "bench": "measure what freezing saves in a training step",
    "soak": "hit short trainings with random faults and count what is lost",
    "recipes": "train the same three tasks by five recipes and compare",
}
"""name -> one line about it; flags, examples and help: ``cli/arguments``"""
EXAMPLES: Examples = (
    ("train a detector on simulated scenes", f"train {STAGE1} --max_iters 100"),
    ("show what the config of the next stage freezes", f"explain {STAGE2}"),
)
SUCCESSORS = {
    "baselines": "bench --what baselines",
}
"""former name of a command -> what to type"""


def main(argv: Sequence[str] | None = None) -> int:
    """Import and run one command; returns its exit code.

    1 after an expected error, 128 + N after signal N: 130 after Ctrl-C.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    module = Path(sys.argv[0]).parts[-2:] == ("pcdet_freeze", "__main__.py")
    prog = "python -m pcdet_freeze" if module else "pcdet-freeze"
    if not words or words[0].startswith("-"):
        return _top_level(words, prog)
    name = words[0].replace("_", "-")
    if name not in COMMANDS:
        return _unknown(name, prog)
    try:
        with ProgramSignals(f"{prog} {name}"):
            code = _run(name, words[1:], f"{prog} {name}")
            sys.stdout.flush()
            return code
    except BrokenPipeError:
        if not _nobody_reads():
            raise
        return SIGNALLED + signal.SIGPIPE
    except KeyboardInterrupt:
        print(f"\n{prog} {name}: interrupted", file=sys.stderr)
        return INTERRUPTED


def _nobody_reads() -> bool:
    """Whether the reader of the standard output has ended (``| head``); then it goes nowhere from now on."""
    if not hasattr(select, "poll"):
        return False
    output = select.poll()
    output.register(sys.stdout, 0)
    if not any(event & select.POLLERR for _, event in output.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _run(name: str, words: Sequence[str], prog: str) -> int:
    args = parser_of(name, prog).parse_args(words)
    with HeldInterrupt(), _collector_off():  # torch aborts where its import is interrupted
        command = importlib.import_module(f"pcdet_freeze.cli.{name.replace('-', '_')}")
    try:
        return command.run(args)
    except PCDetFreezeError as error:
        from pcdet_freeze.config import locate
        from pcdet_freeze.utils.terminal import paint

        title = paint(type(error).__name__, "red", sys.stderr)
        print(f"{title}: {locate(getattr(args, 'cfg', {}), str(error))}", file=sys.stderr)
        return getattr(command, "ERROR_CODE", 1)


def parser_of(name: str, prog: str) -> CommandParser:
    """The parser of the command ``name``, without an import of torch."""
    flags = importlib.import_module(f"pcdet_freeze.cli.arguments.{name.replace('-', '_')}")
    parser = CommandParser(flags.EXAMPLES, prog=prog, description=flags.__doc__)
    flags.add_arguments(parser)
    return parser


@contextmanager
def _collector_off() -> Iterator[None]:
    """Import without garbage collection, which finds nothing in modules but takes 15 % of the time.

    What is imported is not looked at later either; loader processes then share its pages.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.freeze()
            gc.enable()


def _top_level(words: Sequence[str], prog: str) -> int:
    """``--help``, ``--version``, and no words at all."""
    lines = [
        line
        for name, summary in COMMANDS.items()
        for line in textwrap.wrap(f"{name:<14}{summary}", 76, subsequent_indent=" " * 14)
    ]
    shown = "\n".join(f"  {line}" for line in lines)
    parser = CommandParser(
        EXAMPLES,
        prog=prog,
        usage=f"{prog} <command> ...",
        description=f"commands; `{prog} <command> --help` shows the options of one:\n{shown}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pcdet_freeze {__version__}")
    parser.parse_args(words)
    parser.print_help(sys.stderr)
    return USAGE


def _unknown(name: str, prog: str) -> int:
    if name in SUCCESSORS:
        print(f"{prog}: the command {name} is now `{prog} {SUCCESSORS[name]}`", file=sys.stderr)
        return USAGE
    import difflib

    close = difflib.get_close_matches(name, COMMANDS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    known = ", ".join(COMMANDS)
    print(f"{prog}: unknown command {name!r}{hint} (choose from {known})", file=sys.stderr)
    return USAGE


def leave(code: int) -> NoReturn:
    """End the program with ``code``; after a signal at once: the interpreter's own end takes seconds."""
    if code > SIGNALLED:
        end_process(code)
    sys.exit(code)


def program() -> NoReturn:
    """Run ``main`` as the whole program, or answer a shell that completes a command line."""
    if "_ARGCOMPLETE" in os.environ:
        from pcdet_freeze.cli.common.completion import complete

        complete(COMMANDS, "pcdet-freeze")
    leave(main())


if __name__ == "__main__":
    program()
