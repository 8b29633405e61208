"""The tree of ``explain``: how modules, their state and what decides it are drawn."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest

from pcdet_freeze.cli.common.module_tree import draw_tree
from pcdet_freeze.engine.explain import Row


def row(module: str, frozen: str = "no", entries: tuple[str, ...] = (), **others: Any) -> Row:
    values = {"norm_locked": 0, "norm_train": 0, "dropout_off": 0, "dropout_on": 0, "groups": (), "head": ""}
    return Row(module, "Part", 16, frozen, entries, **{**values, "losses": (), "unreached": (), **others})


TREE = [
    row("vfe", "yes", ("vfe",), norm_locked=1),
    row("backbone", "partly", ("backbone.a",), norm_locked=1, norm_train=2, losses=("head",)),
    row("backbone.a", "yes", ("backbone.a",), norm_locked=1),
    row("backbone.b", groups=(0, 1), norm_train=2, losses=("head",)),
    row("head", losses=("head",), groups=(0,), head="loss"),
]


def test_the_tree_names_state_entry_and_loss_of_each_module() -> None:
    assert draw_tree(TREE, 80) == [
        "module       params  state   norm        group  by",
        "├─ vfe           16  frozen  1 locked    -      vfe",
        "├─ backbone      16  partly  1/3 locked  -      backbone.a; loss of head",
        "│  ├─ a          16  frozen  1 locked    -      backbone.a",
        "│  └─ b          16  trains  2 train     0,1    loss of head",
        "└─ head          16  trains  -           0      loss of head",
    ]


def test_a_long_last_column_goes_on_below_beside_the_bars_of_the_tree() -> None:
    lines = draw_tree(TREE, 60)
    assert lines[2].endswith("backbone.a;") and lines[3].split() == ["│", "│", "loss", "of", "head"]


@pytest.mark.parametrize("limit", [60, 80, 100])
def test_no_line_is_longer_than_the_terminal_and_both_ends_of_a_name_are_kept(limit: int) -> None:
    names = [f"a_long_name_of_a_module_{end}" * 2 for end in ("first", "second")]
    lines = draw_tree(
        [row(name, "yes", ("an_entry.with.dots" * 4, name), losses=(name,)) for name in names], limit
    )
    assert max(map(len, lines)) <= limit
    shown = [line.split()[1] for line in lines if line.startswith(("├", "└"))]
    assert [name[-4:] for name in shown] == ["irst", "cond"]


def test_a_name_longer_than_the_last_column_is_split_behind_a_dot() -> None:
    names = ("backbone.a_part_of_it", "backbone.b")
    line = row("backbone", "partly", names, norm_locked=11, norm_train=8, groups=(0, 1), dropout_off=3)
    _, *lines = draw_tree([line], 76)
    texts = [text.split()[-1] for text in lines]
    assert texts == ["backbone.", "a_part_of_it,", "backbone.b"]


def test_a_very_narrow_terminal_gets_longer_lines_and_no_error() -> None:
    assert len(draw_tree(TREE, 20)) >= len(TREE) + 1


def test_without_unicode_the_tree_is_drawn_in_ascii(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    text = "\n".join(draw_tree([*TREE, row("x" * 90)], 80))
    assert text.isascii() and "|  `- b" in text and ".." in text


def test_frozen_modules_are_blue_and_those_that_no_loss_reaches_are_red(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    lines = draw_tree([*TREE, row("lost", unreached=("lost.weight",))], 80)
    assert lines[1].startswith("\033[34m├─ vfe") and lines[-1].startswith("\033[31m└─ lost")
    assert "NO LOSS" in lines[-1] and "\033" not in lines[4]
