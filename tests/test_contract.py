"""Ids of docs/contract.md: all that code and tests use exist, and each has a test that carries it."""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pcdet_freeze import FreezePlan
from pcdet_freeze.freezing.plan import FreezeOptions

ID = re.compile(r"\b[NHTPRF]\d{1,2}\b")
NOT_IDS = {"P0", "R11", "R40"}
"""KITTI's: a camera matrix, and the recall positions of its two average precisions"""


@pytest.fixture(scope="module")
def contract(root: Path) -> str:
    return (root / "docs" / "contract.md").read_text()


@pytest.fixture(scope="module")
def ids(contract: str) -> list[str]:
    return re.findall(r"^- \*\*([A-Z]\d{1,2})\*\*", contract, re.MULTILINE)


def python_files(root: Path) -> Iterator[Path]:
    for folder in ("pcdet_freeze", "tools", "tests"):
        yield from sorted((root / folder).rglob("*.py"))


def functions_in(path: Path) -> Iterator[ast.FunctionDef]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return (n for n in nodes if isinstance(n, ast.FunctionDef) and n.name.startswith("test_"))


def ids_of(test: ast.FunctionDef) -> set[str]:
    """Ids in the name (``test_h4_...``) and at the start of the docstring (``H4: ...``, ``H4, H5: ...``)."""
    named = re.match(r"test_((?:[nhtprf]\d{1,2}_)+)", test.name)
    listed = re.match(r"((?:[NHTPRF]\d{1,2}[, ]*)+):", ast.get_docstring(test) or "")
    found = (named[1].upper().split("_") if named else []) + (ID.findall(listed[1]) if listed else [])
    return {name for name in found if name}


def test_the_ids_are_numbered_without_a_gap_and_each_stands_once(ids: list[str]) -> None:
    for letter in "NHTPRF":
        numbers = [int(name[1:]) for name in ids if name[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1)), letter


def test_every_id_in_code_and_tests_is_in_the_contract(root: Path, ids: list[str]) -> None:
    for path in python_files(root):
        used = set(ID.findall(path.read_text())) - NOT_IDS
        if path.is_relative_to(root / "tests"):
            used |= set().union(*map(ids_of, functions_in(path)))
        assert used <= set(ids), f"{path.relative_to(root)}: {sorted(used - set(ids))}"


def test_every_id_of_the_contract_has_a_test_that_carries_it(root: Path, ids: list[str]) -> None:
    files = (root / "tests").rglob("test_*.py")
    tested = set().union(*(ids_of(test) for path in files for test in functions_in(path)))
    assert not set(ids) - tested


def test_every_id_that_the_contract_refers_to_is_one_of_its_own(contract: str, ids: list[str]) -> None:
    assert set(ID.findall(contract)) == set(ids)


def test_the_contract_lists_every_key_of_the_freeze_section_with_its_default(contract: str) -> None:
    config: dict[str, Any] = yaml.safe_load(contract.split("```yaml\n")[1].split("```")[0])
    plan = FreezePlan.from_cfg(config)
    assert plan == FreezePlan(tuple(config["MODEL"]["NOT_TRAIN_IN_MULTI_TASK"]))
    keys = {field.name.upper() for field in dataclasses.fields(FreezeOptions)}
    assert set(config["MODEL"]["FREEZE"]) == keys
