"""Machine code on disk: loaded by the next start, never stale, kept whole by processes that run at once."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numba.core.caching import IndexDataCacheFile

from pcdet_freeze.ops import compiled as cache

HELPER = """
from pcdet_freeze.ops.compiled import compiled

@compiled
def scale(x):
    return {factor} * x
"""
MAIN = """
from pcdet_freeze.ops.compiled import compiled
from {package}.helper import scale

@compiled
def scaled(x):
    return scale(x) + 1
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package of two compiled functions, of which one calls the other."""
    package = tmp_path / f"pkg_{tmp_path.name}"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "helper.py").write_text(HELPER.format(factor=2))
    (package / "main.py").write_text(MAIN.format(package=package.name))
    monkeypatch.syspath_prepend(str(tmp_path))
    return package


def start(folder: Path) -> Any:
    """``scaled`` as a new process imports it."""
    cache._digest_of.cache_clear()
    for name in ("helper", "main"):
        found = _imported(f"{folder.name}.{name}", folder / f"{name}.py")
    return found.scaled


def _imported(name: str, path: Path) -> ModuleType:
    importlib.invalidate_caches()
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loads(function: Any) -> int:
    """Signatures that were loaded from the disk."""
    return sum(function.stats.cache_hits.values())


def test_the_next_start_loads_what_was_compiled(folder: Path) -> None:
    first, second = start(folder), start(folder)
    assert first(3) == second(3) == 7
    assert loads(first) == 0
    assert loads(start(folder)) == 0 and loads(second) == 1


def test_a_change_of_a_function_that_it_calls_is_seen(folder: Path) -> None:
    assert start(folder)(3) == 7
    (folder / "helper.py").write_text(HELPER.format(factor=5))
    assert start(folder)(3) == 16


@pytest.mark.parametrize("kind", ["nbi", "nbc"])
@pytest.mark.parametrize("left", [0, 40])
def test_a_damaged_cache_is_replaced(folder: Path, kind: str, left: int) -> None:
    start(folder)(3)
    for path in folder.glob(f"__pycache__/*.{kind}"):
        path.write_bytes(path.read_bytes()[:left])
    again, last = start(folder), start(folder)
    assert again(3) == 7 and loads(again) == 0
    assert start(folder)(3) == 7
    assert last(3) == 7 and loads(last) == 1


def test_without_a_folder_to_write_to_the_function_is_compiled(folder: Path) -> None:
    space: dict[str, Any] = {}
    exec("def twice(x):\n    return 2 * x", space)  # no file, so numba has nowhere to cache it
    assert cache.compiled(space["twice"])(4) == 8


class SlowDisk(IndexDataCacheFile):
    """Writing the index takes a while."""

    def _save_index(self, overloads: Any) -> None:
        time.sleep(0.2)
        super()._save_index(overloads)


def test_processes_that_compile_at_once_keep_index_and_data_together(folder: Path) -> None:
    kinds, children = ["int64", "float64", "float32", "uint8"], []
    function = start(folder)
    function._cache._cache_file.__class__ = SlowDisk
    for kind in kinds:
        if (child := os.fork()) == 0:
            function(np.ones(1, kind))
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(kinds)
    later = start(folder)
    assert [later(np.ones(1, kind)).tolist() for kind in kinds] == [[3]] * len(kinds)
    assert loads(later) == len(kinds)
