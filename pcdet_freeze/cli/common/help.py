"""The parser of a command: its help begins with two examples that can be pasted into a shell."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

Example = tuple[str, str]
"""(what it does, the words behind the command)"""
Examples = tuple[Example, Example]
CKPT = "ckpt/checkpoint_epoch_1.pth"
DETECTOR = f"output/synthetic_models/stage1_detect/default/{CKPT}"
SEGMENTATION = f"output/synthetic_models/stage2_segment/default/{CKPT}"
"""checkpoints that the two examples of ``train`` write, and that other examples read"""
STAGE1, STAGE2, STAGE3 = (
    f"--cfg_file synthetic_models/{name}.yaml" for name in ("stage1_detect", "stage2_segment", "stage3_lane")
)
WIDTH = 80
NEXT_LINE = "\n" + 7 * " "


class _Formatter(argparse.HelpFormatter):
    """Short usage: what is required, then ``[options]``; values are named by the last word of their flag."""

    def _format_usage(self, usage: str | None, actions: Any, groups: Any, prefix: str | None) -> str:
        one_of = [group for group in groups if group.required]
        asked = [
            action
            for action in actions
            if action.required or any(action in group._group_actions for group in one_of)
        ]
        text = super()._format_usage(usage, asked, one_of, prefix)
        if usage:
            return text
        text = text.rstrip()
        fits = len(text.rpartition("\n")[2]) + len(" [options]") <= self._width
        return f"{text}{' ' if fits else NEXT_LINE}[options]\n\n"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        if action.nargs == argparse.REMAINDER:  # of which argparse shows "..." only
            return f"{action.metavar or default_metavar} ..."
        return super()._format_args(action, default_metavar)

    def _get_default_metavar_for_optional(self, action: argparse.Action) -> str:
        if action.type in (None, Path):
            return action.dest.rpartition("_")[2].upper()
        return "N"


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser whose help begins with examples.

    Args:
        examples: (what it does, the words behind ``prog``) of each.
        others: those of ArgumentParser.
    """

    def __init__(self, examples: Sequence[Example] = (), **others: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, **others})
        self.examples = examples

    def format_help(self) -> str:
        """The examples, then the help of argparse."""
        return f"{examples_text(self.prog, self.examples)}\n\n{super().format_help()}"


def examples_text(prog: str, examples: Sequence[Example]) -> str:
    """The examples below a heading; a long command continues on the next line, behind a backslash."""
    lines = ["examples:"]
    for about, words in examples:
        lines += [f"  # {about}", *_command_lines(f"{prog} {words}")]
    return "\n".join(lines)


def _command_lines(command: str) -> list[str]:
    """Lines of at most WIDTH characters, as far as the words allow it; a flag and its value stay together."""
    lines = ["  "]
    for word in (part for group in _groups(command) for part in group):
        longer = f"{lines[-1]} {word}" if lines[-1].strip() else f"{lines[-1]}{word}"
        if len(longer) + len(" \\") <= WIDTH:
            lines[-1] = longer
        else:
            lines[-1] += " \\"
            lines.append(f"    {word}")
    return lines


def _groups(command: str) -> list[list[str]]:
    """The words; a flag and its first value are one where they fit in a line."""
    groups: list[list[str]] = []
    for word in command.split():
        flag = groups[-1][-1] if groups else ""
        if flag.startswith("--") and " " not in flag and not word.startswith("--"):
            short = len(f"    {flag} {word} \\") <= WIDTH
            groups[-1] = [f"{flag} {word}"] if short else [flag, word]
        else:
            groups.append([word])
    return groups
