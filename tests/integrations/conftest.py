"""Makes the stand-in for OpenPCDet importable during a test; loaders and an example for tests of tasks."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from easydict import EasyDict
from standin_runs import TOOLS, Standin

from pcdet_freeze import openpcdet
from pcdet_freeze.integrations.openpcdet.tasks import registry


@pytest.fixture
def standin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Standin]:
    """Removes modules, paths, working directory and plugin after the test."""
    here, path, argv, finders = os.getcwd(), sys.path[:], sys.argv[:], sys.meta_path[:]
    monkeypatch.setenv("STANDIN_ROOT", str(tmp_path))
    made = Standin(tmp_path, monkeypatch)
    yield made
    openpcdet.uninstall()
    made.forget()
    os.chdir(here)
    sys.path[:], sys.argv[:] = path, argv
    assert sys.meta_path == finders


@pytest.fixture
def no_tasks() -> Iterator[None]:
    """Removes all tasks after the test."""
    yield
    registry.clear()
    sys.modules.pop("my_head", None)


@pytest.fixture
def loader(standin: Standin) -> Any:
    """``loader(*augmentors)``: OpenPCDet's ``build_dataloader`` for scans, with the plugin."""

    def build(*augmentors: Any, training: bool = True) -> Any:
        openpcdet.install()
        cfg = EasyDict(yaml.safe_load((TOOLS / "cfgs/dataset_configs/scan_dataset.yaml").read_text()))
        cfg.DATA_AUGMENTOR = list(augmentors)
        datasets = standin.module("pcdet.datasets")
        return datasets.build_dataloader(cfg, ["Car"], 4, dist=False, workers=0, training=training)[1]

    return build


@pytest.fixture
def example(root: Path, tmp_path: Path) -> Path:
    """``my_head.py`` of the documentation, with labels for it beside it: 1 in the upper half of each scan."""
    text = (root / "docs/openpcdet_tasks.md").read_text()
    (tmp_path / "my_head.py").write_text(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0])
    (tmp_path / "point_labels").mkdir()
    for index in range(8):
        np.save(tmp_path / f"point_labels/{index}.npy", np.arange(40 + index % 4) >= 20)
    return tmp_path / "my_head.py"
