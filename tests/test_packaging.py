"""The wheel and the sdist: complete, with configs, and usable from any folder."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import pcdet_freeze

OPTIONAL = {
    "argcomplete",
    "blosc2",
    "laspy",
    "matplotlib",
    "nuscenes-devkit",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "pyarrow",
    "pypcd4",
    "viser",
}
"""distributions that an extra brings"""
NOT_REQUIRED = {"pcdet", "train_utils"}
"""modules of OpenPCDet, which the plugin works inside of"""
SOURCES = ("CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "MANIFEST.in", "Makefile", "README.md", "cfgs",
           "constraints.txt", "docs", "pcdet_freeze", "pyproject.toml", "tests", "tools")  # fmt: skip
CFG = "synthetic_models/pointpillar.yaml"
SMALL = ["DATA_CONFIG.NUM_SCENES.train", "6", "DATA_CONFIG.NUM_SCENES.test", "2",
         "DATA_CONFIG.SENSOR.BEAMS", "VLP-16"]  # fmt: skip


def test_pyproject_lists_every_package(root: Path) -> None:
    text = (root / "pyproject.toml").read_text()  # Python 3.10 has no tomllib
    listed = ast.literal_eval("[" + text.partition("\npackages = [")[2].partition("]")[0] + "]")
    found = {path.parent.relative_to(root) for path in (root / "pcdet_freeze").rglob("*.py")}
    assert sorted(listed) == sorted({".".join(path.parts) for path in found} | {"pcdet_freeze.cfgs"})


@pytest.fixture(scope="module")
def dist(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist and with the wheel that is built from it."""
    out = tmp_path_factory.mktemp("dist")
    code = f"from setuptools import build_meta; print(build_meta.build_sdist({str(out)!r}))"
    source = out / "source"
    for name in SOURCES:
        copy = shutil.copytree if (root / name).is_dir() else shutil.copyfile
        source.mkdir(exist_ok=True)
        copy(root / name, source / name)
    subprocess.run([sys.executable, "-c", code], cwd=source, check=True, capture_output=True)
    with tarfile.open(next(out.glob("*.tar.gz"))) as archive:
        archive.extractall(out / "unpacked", filter="data")
    unpacked = next((out / "unpacked").iterdir())
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", str(out), str(unpacked)], check=True, capture_output=True)
    return out


@pytest.fixture(scope="module")
def wheel(dist: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(dist.glob("*.whl")))


@pytest.mark.slow
def test_the_sdist_carries_configs_tests_and_documents(dist: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"cfgs/{CFG}", "tests/test_packaging.py", "tools/train.py", "constraints.txt"} <= names
    assert {"README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "docs/freezing.md"} <= names


@pytest.mark.slow
def test_the_wheel_has_all_code_all_configs_and_nothing_else(wheel: zipfile.ZipFile, root: Path) -> None:
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    code = {path.relative_to(root).as_posix() for path in (root / "pcdet_freeze").rglob("*.py")}
    configs = {f"pcdet_freeze/{p.relative_to(root).as_posix()}" for p in (root / "cfgs").rglob("*.yaml")}
    assert names == code | configs | {"pcdet_freeze/py.typed"}


def metadata(wheel: zipfile.ZipFile) -> str:
    return wheel.read(next(name for name in wheel.namelist() if name.endswith("/METADATA"))).decode()


@pytest.mark.slow
def test_the_wheel_has_the_version_of_the_package(wheel: zipfile.ZipFile) -> None:
    assert f"\nVersion: {pcdet_freeze.__version__}\n" in metadata(wheel)


@pytest.mark.slow
def test_the_wheel_requires_every_distribution_that_it_imports(wheel: zipfile.ZipFile) -> None:
    required = {
        re.split(r"[^\w.-]", line.partition(": ")[2])[0].lower()
        for line in metadata(wheel).splitlines()
        if line.startswith("Requires-Dist: ") and "extra ==" not in line
    }
    installed = packages_distributions()
    provided = {module: {name.lower() for name in names} for module, names in installed.items()}
    modules = set().union(*(imports_of(wheel.read(n)) for n in wheel.namelist() if n.endswith(".py")))
    outside = modules - set(sys.stdlib_module_names) - {"pcdet_freeze"} - NOT_REQUIRED
    lacking = {m for m in outside if not provided[m] & required and not provided[m] & OPTIONAL}
    assert not lacking and len(outside) > 8


def imports_of(source: bytes) -> set[str]:
    """First part of the name of each module that is imported, also inside functions."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module))
    return {name.partition(".")[0] for name in names}


class Installed:
    """A fresh environment with the wheel; everything else comes from the running one by a path file."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        self.bin, self.work = folder / "env" / "bin", folder / "work"
        self.work.mkdir()
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "env")], check=True)
        site = next((folder / "env" / "lib").glob("python3*")) / "site-packages"
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "install", "--quiet"]
        subprocess.run([*pip, "--no-deps", "--no-index", str(wheel)], check=True, capture_output=True)
        # a path that is added by a .pth file is not searched for .pth files: an editable install of the
        # project in the running environment has no effect
        others = [p for p in map(Path, sys.path) if p.name in ("site-packages", "dist-packages")]
        (site / "dependencies.pth").write_text("".join(f"{path}\n" for path in others))

    def run(self, *words: str, check: bool = True) -> str:
        env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
        command = [str(self.bin / words[0]), *words[1:]]
        done = subprocess.run(command, cwd=self.work, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, done.stdout[-2000:] + done.stderr[-3000:]
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(dist: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    env = Installed(tmp_path_factory.mktemp("installed"), next(dist.glob("*.whl")))
    file = Path(env.run("python", "-c", "import pcdet_freeze; print(pcdet_freeze.__file__)").strip())
    assert file.is_relative_to(env.bin.parent / "lib")
    return env


@pytest.mark.slow
@pytest.mark.parametrize("name", [CFG, f"cfgs/{CFG}"])
def test_the_installed_command_trains_a_packaged_config_from_an_empty_folder(
    installed: Installed, name: str
) -> None:
    flags = ["--max_iters", "3", "--batch_size", "2", "--workers", "0", "--device", "cpu"]
    tag = "plain" if name == CFG else "prefixed"
    out = installed.run(
        "pcdet-freeze", "train", "--cfg_file", name, "--extra_tag", tag, *flags, "--set", *SMALL
    )
    assert "Acc_iter 3" in out
    run = installed.work / "output" / "synthetic_models" / "pointpillar" / tag
    assert (run / "ckpt" / "checkpoint_epoch_1.pth").is_file() and (run / "run.json").is_file()


@pytest.mark.slow
def test_a_config_in_the_working_directory_wins(installed: Installed) -> None:
    own = installed.work / "synthetic_models"
    own.mkdir()
    (own / "pointpillar.yaml").write_text("CLASS_NAMES: [Car]\n")
    shown = installed.run("pcdet-freeze", "explain", "--cfg_file", CFG, check=False)
    (own / "pointpillar.yaml").unlink()
    own.rmdir()
    assert "MODEL" in shown and "missing" in shown


@pytest.mark.slow
def test_the_installed_explain_and_bench_find_their_configs(installed: Installed) -> None:
    words = ["--device", "cpu", "--set", "MODEL.NOT_TRAIN_IN_MULTI_TASK", "[vfe]"]
    shown = installed.run("pcdet-freeze", "explain", "--cfg_file", "kitti_models/pointpillar.yaml", *words)
    assert "vfe" in shown
    small = ["--batch_size", "1", "--rounds", "1", "--variants", "none"]
    assert "Ratios to none" in installed.run("pcdet-freeze", "bench", *small)


@pytest.mark.slow
def test_the_installed_package_is_typed_and_runs_as_a_module(installed: Installed) -> None:
    shown = installed.run("python", "-m", "pcdet_freeze", "--version")
    assert shown == f"pcdet_freeze {pcdet_freeze.__version__}\n"
    assert list(installed.bin.parent.glob("lib/python3*/site-packages/pcdet_freeze/py.typed"))
