"""``python -m pcdet_freeze <command> ...``: each command is one file of ``pcdet_freeze/cli``."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from collections.abc import Sequence

from pcdet_freeze import cli
from pcdet_freeze.config import locate
from pcdet_freeze.errors import PCDetFreezeError


def commands() -> list[str]:
    """Names of the commands, without importing any."""
    return sorted(module.name for module in pkgutil.iter_modules(cli.__path__) if module.name[0] != "_")


def main(argv: Sequence[str] | None = None) -> int:
    """Import the one command that was asked for, and run it; returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    top = argparse.ArgumentParser(prog="python -m pcdet_freeze")
    top.add_argument("command", choices=commands(), help="what to do; `<command> --help` tells more")
    name = top.parse_args(words[:1]).command
    command = importlib.import_module(f"pcdet_freeze.cli.{name}")
    parser = argparse.ArgumentParser(prog=f"python -m pcdet_freeze {name}", description=command.__doc__)
    command.add_arguments(parser)
    args = parser.parse_args(words[1:])
    try:
        return command.run(args)
    except PCDetFreezeError as error:
        print(f"{type(error).__name__}: {locate(getattr(args, 'cfg', {}), str(error))}", file=sys.stderr)
        return getattr(command, "ERROR_CODE", 1)


if __name__ == "__main__":
    sys.exit(main())
