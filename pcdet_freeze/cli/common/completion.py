"""Shell completion by argcomplete: what the shell asks for is printed without an import of torch.

A shell calls the program with ``_ARGCOMPLETE`` set and the line typed so far in ``COMP_LINE``; the answers go
to file descriptor 8. See docs/terminal.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

Completer = Callable[..., Iterable[str]]
CHECKPOINTS = (".pth", ".pt")


def complete(summaries: Mapping[str, str], prog: str) -> None:
    """Answer the shell and end the process; do nothing without argcomplete, or if no shell asks.

    Args:
        summaries: name of each command -> one line about it.
    """
    try:
        import argcomplete
        from argcomplete.completers import SuppressCompleter
    except ImportError:
        return
    words = os.environ.get("COMP_LINE", "").split()[int(os.environ.get("_ARGCOMPLETE") or 1) :]
    name = words[0] if words else ""
    begun = name.replace("_", "-") in summaries
    argcomplete.autocomplete(
        parser_of_all(summaries, prog, name),
        always_complete_options="long" if begun else False,
        default_completer=SuppressCompleter(),
    )


def parser_of_all(summaries: Mapping[str, str], prog: str, name: str) -> argparse.ArgumentParser:
    """A parser of all commands, of which only the command ``name`` has its flags."""
    parser = argparse.ArgumentParser(prog=prog)
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers()
    for known, summary in summaries.items():
        typed = name if name.replace("_", "-") == known else known
        command = commands.add_parser(typed, help=summary)
        if typed == name:
            import_module(f"pcdet_freeze.cli.arguments.{known.replace('-', '_')}").add_arguments(command)
            add_completers(command)
    return parser


def add_completers(parser: argparse.ArgumentParser) -> None:
    """Attach to each argument what completes its values: by its name, else files where it is a path.

    YAML and the checks of ``doctor`` are imported only where the shell asks for their words.
    """
    for action in parser._actions:
        completer = COMPLETERS.get(action.dest, files() if action.type is Path else None)
        if completer is not None and action.choices is None:
            setattr(action, "completer", completer)  # noqa: B010  (argparse does not declare it)


def files(*suffixes: str) -> Completer:
    """A completer of folders and of files with one of ``suffixes`` (none: of all files)."""

    def found(prefix: str, **_: Any) -> list[str]:
        above, _slash, begin = prefix.rpartition("/")
        folder = Path(above or ("/" if prefix.startswith("/") else ".")).expanduser()
        try:
            paths = [path for path in folder.iterdir() if path.name.startswith(begin)]
        except OSError:
            return []
        shown = [path for path in paths if begin.startswith(".") or not path.name.startswith(".")]
        head = prefix[: len(prefix) - len(begin)]
        return sorted(
            f"{head}{path.name}{'/' if path.is_dir() else ''}"
            for path in shown
            if path.is_dir() or not suffixes or path.suffix in suffixes
        )

    return found


def _configs(prefix: str, **_: Any) -> list[str]:
    from pcdet_freeze.config.find import config_names

    return [*(name for name in config_names() if name.startswith(prefix)), *files(".yaml", ".yml")(prefix)]


def _entry_list(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Entries of a freeze list; of ``a,b`` the last one is completed."""
    before, comma, _last = prefix.rpartition(",")
    return [f"{before}{comma}{entry}" for entry in _entries(parsed_args)]


def _entries(parsed_args: argparse.Namespace) -> list[str]:
    from pcdet_freeze.cli.common.known_words import entries_of

    return entries_of(_cfg_file(parsed_args))


def _heads(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return [name for name in _entries(parsed_args) if "head" in name]


def _taken(prefix: str, parsed_args: argparse.Namespace, **kwargs: Any) -> list[str]:
    """``a,b:file.pth`` of stitch: entries before the colon, a checkpoint behind it."""
    names, colon, file = prefix.partition(":")
    if colon:
        return [f"{names}:{path}" for path in files(*CHECKPOINTS)(file)]
    return _entry_list(prefix, parsed_args)


def _set_words(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """A key behind ``--set`` and behind each value; a value behind a key."""
    from pcdet_freeze.cli.common.known_words import keys_of, values_of

    given = getattr(parsed_args, "set_cfgs", None) or []
    cfg_file = _cfg_file(parsed_args)
    if len(given) % 2 == 0:
        return keys_of(cfg_file)
    before, comma, _last = prefix.rpartition(",")
    return [f"{before}{comma}{value}" for value in values_of(cfg_file, given[-1])]


def _check_ids(prefix: str, **_: Any) -> list[str]:
    from pcdet_freeze.doctor import CHECKS

    return list(CHECKS)


def _cfg_file(parsed_args: argparse.Namespace) -> str | None:
    return getattr(parsed_args, "cfg_file", None)


_checkpoint = files(*CHECKPOINTS)
_COMPLETED: dict[Completer, tuple[str, ...]] = {
    _configs: ("cfg_file", "before_cfg_file"),
    _checkpoint: ("ckpt", "pretrained_model", "before", "after", "trunk", "stage1"),
    _entry_list: ("freeze", "names"),
    _heads: ("keep",),
    _taken: ("take",),
    _set_words: ("set_cfgs",),
    _check_ids: ("only", "skip"),
    files(): ("output_dir", "ckpt_dir"),
    lambda **_: ["cpu", "cuda"]: ("device",),
    lambda **_: ["mlflow", "none", "wandb"]: ("tracker",),
}
COMPLETERS = {dest: completer for completer, dests in _COMPLETED.items() for dest in dests}
"""name of an argument -> what completes it"""
