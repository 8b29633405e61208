"""Help of each command: two examples that parse, 80 columns, no import of torch."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib import import_module

import pytest

from pcdet_freeze.__main__ import COMMANDS, main, parser_of
from pcdet_freeze.cli.arguments import bench, demo, prepare

PROG = "pcdet-freeze"


def examples_in(text: str) -> list[list[str]]:
    """The words of each example at the beginning of a help, as a shell reads them."""
    head = text.partition("\n\n")[0].removeprefix("examples:\n").replace("\\\n", " ")
    return [words for line in head.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture(autouse=True)
def _terminal_of_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_begins_with_two_examples_that_parse(name: str) -> None:
    parser = parser_of(name, f"{PROG} {name}")
    found = examples_in(parser.format_help())
    assert len(found) == 2 and [words[:2] for words in found] == [[PROG, name]] * 2
    assert all(parser.parse_args(words[2:]) for words in found)
    assert all(about for about, _ in parser.examples)


@pytest.mark.parametrize("prog", [PROG, "python -m pcdet_freeze"])
@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_fits_80_columns(name: str, prog: str) -> None:
    text = parser_of(name, f"{prog} {name}").format_help()
    assert [line for line in text.splitlines() if len(line) > 80] == []


def test_the_help_of_the_program_has_two_examples_and_fits_80_columns(capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    found = examples_in(text)
    assert len(found) == 2 and max(map(len, text.splitlines())) <= 80
    assert all(parser_of(words[1], PROG).parse_args(words[2:]) for words in found)


WITHOUT_TORCH = """
import sys
from pcdet_freeze.__main__ import COMMANDS, parser_of
for name in COMMANDS:
    parser_of(name, name).format_help()
print(*sorted({"torch", "numpy", "yaml"} & set(sys.modules)))
"""


def test_no_help_imports_torch() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def test_the_names_that_flags_take_are_those_that_commands_have() -> None:
    def of(file: str) -> object:
        return import_module(f"pcdet_freeze.{file}")

    assert set(bench.WHAT) == set(of("cli.bench").COMPARISONS)
    assert tuple(of("bench").BUILT) == bench.VARIANTS
    assert tuple(of("bench.other_packages").AGAINST) == bench.AGAINST
    assert demo.COLORS == of("visualization.bev").COLORS
    assert demo.SUFFIXES == of("datasets.file_formats.point_files").SUFFIXES
    assert set(prepare.DATASETS) == set(of("cli.prepare").PREPARE)
