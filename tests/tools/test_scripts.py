"""tools/*.py are the commands of the same names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tool_runs import ROOT, tool

from pcdet_freeze.__main__ import COMMANDS

SCRIPTS = sorted(path.stem for path in (ROOT / "tools").glob("*.py"))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_the_command_of_its_name(name: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as end:
        tool(name).main(["--help"])
    assert end.value.code == 0 and name.replace("_", "-") in COMMANDS
    assert f"\n  pcdet-freeze {name.replace('_', '-')} " in capsys.readouterr().out


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_a_few_lines(name: str) -> None:
    lines = (
        Path(ROOT / "tools" / f"{name}.py").read_text().rpartition('"""\n\nfrom __future__')[2].splitlines()
    )
    assert len(lines) < 20
