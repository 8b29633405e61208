"""Build models of the stand-in and run its tools/train.py with the plugin, in this process."""

from __future__ import annotations

import io
import logging
import os
import random
import runpy
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from easydict import EasyDict

from pcdet_freeze import openpcdet

STANDIN = Path(__file__).resolve().parents[1] / "integrations" / "standin"
TOOLS = STANDIN / "tools"
CFGS = TOOLS / "cfgs" / "toy_models"
CONFIGS = sorted(path.stem for path in CFGS.glob("*.yaml"))
TRUNK = "vfe,backbone_3d,map_to_bev_module,backbone_2d"
WEIGHTS_ONLY = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 6)
"""whether torch.load refuses other than plain data by default, and OpenPCDet with it"""
RANDOM = ["MODEL.FREEZE.ALLOW_RANDOM", "True"]


def frozen_words(names: str, *more: str) -> list[str]:
    """``--set`` with a freeze list; must come last."""
    return ["--set", "MODEL.NOT_TRAIN_IN_MULTI_TASK", names, *more]


def seed(number: int = 0) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def batch_of(number: int = 0) -> dict[str, Any]:
    """A batch of the loader, on the CPU."""
    draw = torch.Generator().manual_seed(number)
    return {
        "points": torch.randn(2, 12, 4, generator=draw),
        "gt_boxes": torch.randn(2, 3, 4, generator=draw),
        "frame_id": ["0", "1"],
        "batch_size": 2,
    }


@dataclass
class Run:
    """The result of one training."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def losses(self) -> list[str]:
        """Loss of each iteration, as hexadecimal floats."""
        return [line.split()[-1] for line in self.out.splitlines() if line.startswith("iteration")]

    def checkpoint(self, epoch: int = 2) -> Path:
        return self.folder / "ckpt" / f"checkpoint_epoch_{epoch}.pth"

    def state(self, epoch: int = 2) -> dict[str, Any]:
        return torch.load(self.checkpoint(epoch), weights_only=False)


class Standin:
    """The stand-in for OpenPCDet and the actions of its users."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.monkeypatch = monkeypatch
        self.path = sys.path[:]
        self.prepare: Callable[[], None] = lambda: None
        """changes the stand-in before each training, like a fork"""
        self.use("8caccce")

    def use(self, version: str) -> None:
        """Use the signatures of one release."""
        self.monkeypatch.setenv("STANDIN_VERSION", version)
        sys.path[:] = [str(STANDIN), str(STANDIN / f"tools_{version}"), *self.path]

    def forget(self) -> None:
        """Unload the stand-in, as in a new process."""
        ours = ("pcdet", "train_utils", "test", "_init_path")
        for name in [name for name in sys.modules if name.partition(".")[0] in ours]:
            del sys.modules[name]
        logger = logging.getLogger("pcdet.utils.common_utils")
        for handler in logger.handlers[:]:
            logger.removeHandler(handler)
            handler.close()

    def module(self, name: str) -> Any:
        """Import one of its modules."""
        return import_module(name)

    def build(self, config: str, names: Any = None, **block: Any) -> Any:
        """A model by ``pcdet.models.build_network``, in train mode; with ALLOW_RANDOM by default."""
        cfg = EasyDict(yaml.safe_load((CFGS / f"{config}.yaml").read_text())).MODEL
        if names is not None:
            cfg.NOT_TRAIN_IN_MULTI_TASK = names
            cfg.FREEZE = EasyDict({"ALLOW_RANDOM": True, **block})
        seed()
        dataset = SimpleNamespace(class_names=["Car"], logger=logging.getLogger("standin"))
        return self.module("pcdet.models").build_network(cfg, 1, dataset).train()

    def optimizer(self, model: Any, kind: str = "adam_onecycle") -> Any:
        """By OpenPCDet's ``build_optimizer``."""
        sys.path.insert(0, str(TOOLS))
        cfg = EasyDict(OPTIMIZER=kind, LR=0.01, WEIGHT_DECAY=0.01)
        return self.module("train_utils.optimization").build_optimizer(model, cfg)

    def train(self, config: str, *words: str, tag: str = "default", plugin: bool = True) -> Run:
        """``python -m pcdet_freeze.openpcdet tools/train.py ...`` from the root of the stand-in.

        Without ``plugin``: ``python train.py ...`` from its tools folder.
        """
        self.forget()
        path = sys.path[:]
        sys.path.insert(0, str(TOOLS))
        self.prepare()
        cfg = f"cfgs/toy_models/{config}.yaml"
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            if plugin:
                os.chdir(STANDIN)
                script = ["tools/train.py", "--cfg_file", f"tools/{cfg}", "--extra_tag", tag, *words]
                code = openpcdet.main(script)
            else:
                os.chdir(TOOLS)
                sys.argv, sys.path[0] = (
                    ["train.py", "--cfg_file", cfg, "--extra_tag", tag, *words],
                    str(TOOLS),
                )
                runpy.run_path("train.py", run_name="__main__")
                code = 0
        openpcdet.uninstall()
        sys.path[:] = path
        return Run(code, out.getvalue(), err.getvalue(), self.root / "output" / "toy_models" / config / tag)
