"""The architecture: floors, no import cycle, what the plugin loads, public names, top-level files."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import pcdet_freeze

FLOORS = [
    {"errors"},
    {"utils"},
    {"registry", "config", "ops"},
    {"freezing"},
    {"datasets", "models", "evaluation"},
    {"visualization"},
    {"report"},
    {"engine"},
    {"integrations", "export", "bench", "doctor"},
    {"cli"},
    {"__main__"},
    {"openpcdet"},
]
REQUIRED = {"pcdet_freeze", "tools", "cfgs", "tests", "docs", "pyproject.toml", "README.md", "LICENSE"}
TOP_LEVEL = REQUIRED | {
    "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "mkdocs.yml", "MANIFEST.in", ".ci",
    ".github", ".gitignore", ".gitattributes", ".editorconfig", ".pre-commit-config.yaml",
}  # fmt: skip
PUBLIC = {
    "Certificate", "FreezeHandle", "FreezePlan", "compare_states", "copying_frozen", "freeze", "frozen",
    "is_frozen", "set_bn_eval", "set_bn_to_eval", "unfreeze",
    "TrainResult", "build_network", "cfg_from_yaml_file", "evaluate", "train",
    "CertificateError", "CheckpointError", "ConfigError", "DataError", "FreezeError", "IntegrationError",
    "OutputError", "PCDetFreezeError", "TrainingError",
}  # fmt: skip
TRAINER = {"engine", "models", "datasets"}
"""folders that the plugin does not load"""
EXPLAIN = {"pcdet_freeze.cli.explain", "pcdet_freeze.integrations.openpcdet.command.explain"}
"""the one exception: ``python -m pcdet_freeze.openpcdet explain`` prints the trainer's table"""


def folder_of(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floor_of(folder: str) -> int:
    return next(height for height, folders in enumerate(FLOORS) if folder in folders)


def imports_of(path: Path, at_run_time: bool = False) -> set[str]:
    """Absolute names of every module that a file imports, also inside functions.

    Args:
        at_run_time: leave out what only type checkers import.
    """
    found: set[str] = set()
    tree = ast.parse(path.read_text())
    for block in [node for node in ast.walk(tree) if isinstance(node, ast.If)]:
        if at_run_time and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING":
            block.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute in this project"
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return found


@pytest.fixture(scope="session")
def imports(root: Path) -> dict[Path, set[str]]:
    package = root / "pcdet_freeze"
    return {path.relative_to(package): imports_of(path) for path in package.rglob("*.py")}


@pytest.fixture(scope="session")
def imports_at_run_time(root: Path) -> dict[Path, set[str]]:
    package = root / "pcdet_freeze"
    return {path.relative_to(package): imports_of(path, at_run_time=True) for path in package.rglob("*.py")}


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


@pytest.fixture(scope="session")
def graph(imports_at_run_time: dict[Path, set[str]]) -> dict[str, set[str]]:
    """Module -> the modules of the package that it imports, also inside functions."""
    modules = {".".join(("pcdet_freeze", *p.with_suffix("").parts)).removesuffix(".__init__"): n
               for p, n in imports_at_run_time.items()}  # fmt: skip
    return {m: {n for n in names if n in modules and n != m} for m, names in modules.items()}


def test_there_is_no_import_cycle(graph: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for target in graph[module]:
                if not module.startswith(target + "."):
                    visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def reachable(graph: dict[str, set[str]], module: str, without: set[str]) -> set[str]:
    """All modules that importing and calling ``module`` may load; packages on the way are loaded too."""
    found: set[str] = set()
    waiting = {module}
    while waiting:
        name = waiting.pop()
        if name not in found and name not in without:
            found.add(name)
            waiting |= graph[name] | {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 1)}
    return found


def test_the_plugin_reaches_the_trainer_for_explain_only(graph: dict[str, set[str]]) -> None:
    found = reachable(graph, "pcdet_freeze.openpcdet", without=EXPLAIN)
    assert "pcdet_freeze.integrations.openpcdet.session" in found
    assert {name for name in found if folder_of(name) in TRAINER} == set()
    for name in EXPLAIN:
        assert {folder_of(target) for target in reachable(graph, name, without=set())} & TRAINER, name


INSTALL_PLUGIN = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("numba", "tqdm", "tensorboardX", "spconv"):
            raise ImportError(f"{name} is not installed", name=name)

sys.meta_path.insert(0, Missing())
import pcdet_freeze.openpcdet
pcdet_freeze.openpcdet.install()
import pcdet_freeze.freezing.plan
print(*(name for name in sys.modules if name.startswith("pcdet_freeze")))
"""


def test_the_plugin_installs_without_the_trainers_dependencies_and_loads_no_module_of_it() -> None:
    done = subprocess.run([sys.executable, "-c", INSTALL_PLUGIN], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = done.stdout.split()
    assert "pcdet_freeze.integrations.openpcdet.plugin" in loaded
    assert [name for name in loaded if folder_of(name) in TRAINER] == []


def test_all_holds_the_public_names() -> None:
    assert set(pcdet_freeze.__all__) == PUBLIC and len(pcdet_freeze.__all__) == len(PUBLIC)


def test_every_public_name_can_be_imported_and_is_listed_by_dir() -> None:
    assert all(getattr(pcdet_freeze, name) is not None for name in PUBLIC)
    assert set(dir(pcdet_freeze)) >= PUBLIC
    with pytest.raises(AttributeError, match="no_such_name"):
        pcdet_freeze.no_such_name  # noqa: B018


def test_every_exception_is_public() -> None:
    base = pcdet_freeze.PCDetFreezeError
    classes = [value for value in vars(pcdet_freeze.errors).values() if isinstance(value, type)]
    assert {value.__name__ for value in classes if issubclass(value, base)} <= PUBLIC


def test_only_the_listed_files_are_at_the_top_level(root: Path) -> None:
    command = ["git", "ls-files", "--cached", "--full-name"]
    tracked = subprocess.run(
        command, cwd=root, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    found = {name.partition("/")[0] for name in tracked}
    assert found - TOP_LEVEL == set() and found >= REQUIRED


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
