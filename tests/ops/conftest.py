"""Reference inputs and results of the operators."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest


@pytest.fixture(scope="session")
def boxes_golden(reference: Path) -> dict[str, Any]:
    return json.loads((reference / "boxes_nms.json").read_text())


@pytest.fixture(scope="session")
def voxel_golden(reference: Path) -> dict[str, Any]:
    return json.loads((reference / "voxel_aug.json").read_text())


@pytest.fixture(scope="session")
def recipe(reference: Path) -> ModuleType:
    """The recipe of the reference input points."""
    spec = importlib.util.spec_from_file_location("reference_recipe", reference / "recipe.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture()
def boxes(boxes_golden: dict[str, Any]) -> np.ndarray:
    return np.array(boxes_golden["boxes"], dtype=np.float32)


@pytest.fixture()
def scores(boxes_golden: dict[str, Any]) -> np.ndarray:
    return np.array(boxes_golden["scores"], dtype=np.float32)
