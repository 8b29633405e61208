"""The house: imports go down only, no cycle, one file knows spconv, pillars never load it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = [
    {"errors"},
    {"utils"},
    {"registry", "config", "ops"},
    {"freezing"},
    {"datasets", "models", "evaluation"},
    {"engine"},
    {"integrations", "visualization", "bench"},
    {"cli"},
    {"__main__"},
    {"openpcdet"},
]


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor_of(folder: str) -> int:
    return next(height for height, folders in enumerate(FLOORS) if folder in folders)


def imports_of(path: Path, package: str) -> set[str]:
    """Absolute names of every module that a file imports, also inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute in this project"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.fixture(scope="session")
def imports(root: Path) -> dict[Path, set[str]]:
    package = root / "pcdet_freeze"
    return {path.relative_to(package): imports_of(path, "pcdet_freeze") for path in package.rglob("*.py")}


def test_imports_go_down_only(imports: dict[Path, set[str]]) -> None:
    wrong = []
    for path, names in imports.items():
        folder = path.parts[0].removesuffix(".py")
        if folder == "__init__":
            continue
        for target in {folder_of(name) for name in names if name.startswith("pcdet_freeze.")} - {folder}:
            known = any(target in folders for folders in FLOORS)
            if known and floor_of(target) >= floor_of(folder):
                wrong.append(f"{path} ({folder}) imports {target}")
    assert not wrong


def test_every_folder_has_a_floor(imports: dict[Path, set[str]]) -> None:
    folders = {path.parts[0].removesuffix(".py") for path in imports} - {"__init__"}
    assert folders <= set().union(*FLOORS)


def test_freezing_imports_torch_errors_and_utils_only(imports: dict[Path, set[str]]) -> None:
    allowed = set(sys.stdlib_module_names) | {"torch", "__future__"}
    for path, names in imports.items():
        if path.parts[0] == "freezing":
            outside = {n for n in names if n.split(".")[0] not in allowed}
            folders = {folder_of(n) for n in outside if n.startswith("pcdet_freeze.")}
            assert folders <= {"errors", "utils", "freezing"}, path
            assert all(n.startswith("pcdet_freeze") for n in outside), path


def test_only_one_file_imports_spconv(imports: dict[Path, set[str]]) -> None:
    users = {str(path) for path, names in imports.items() if any(n.split(".")[0] == "spconv" for n in names)}
    assert users <= {"ops/sparse.py"}


def test_there_is_no_import_cycle(imports: dict[Path, set[str]]) -> None:
    modules = {".".join(("pcdet_freeze", *p.with_suffix("").parts)).removesuffix(".__init__"): n
               for p, n in imports.items()}  # fmt: skip
    graph = {m: {n for n in names if n in modules and n != m and not m.startswith(n + ".")}
             for m, names in modules.items()}  # fmt: skip
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in graph[module]:
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def test_importing_the_package_and_a_pillar_model_does_not_import_spconv() -> None:
    folders = "pcdet_freeze, pcdet_freeze.models, pcdet_freeze.datasets"
    code = f"import sys, {folders}; sys.exit('spconv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_bare_except_and_no_raise_without_a_message(root: Path) -> None:
    faults = []
    for path in [*(root / "pcdet_freeze").rglob("*.py"), *(root / "tools").glob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            bare = isinstance(node, ast.ExceptHandler) and node.type is None
            mute = (
                isinstance(node, ast.Raise)
                and isinstance(node.exc, ast.Name)
                and node.exc.id.endswith("Error")
            )
            if bare or mute:
                faults.append(f"{path.name}:{node.lineno}")
    assert not faults


def test_entry_points_stay_under_100_lines(root: Path) -> None:
    for path in (root / "tools").glob("*.py"):
        assert len(path.read_text().splitlines()) < 100, path.name
