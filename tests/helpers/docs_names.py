"""Run a Python block of the documentation with the names that it takes as given: a model, its optimizer."""

from __future__ import annotations

import logging
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

OPENPCDET = ("openpcdet", "from_a_fork")
"""pages whose model is one of OpenPCDet"""


def run(file: str, page: str) -> None:
    """Run ``file``, a block of the page whose file is called ``page``."""
    given = _openpcdet() if page in OPENPCDET else _toy()
    runpy.run_path(file, init_globals=given, run_name="__main__")


def _toy() -> dict[str, Any]:
    from freeze_toys import Detector

    model = Detector()
    return {"model": model, "optimizer": torch.optim.AdamW(model.parameters())}


def _openpcdet() -> dict[str, Any]:
    """A model of the stand-in in the working directory, as it is after the lines about building it."""
    import yaml
    from easydict import EasyDict

    from pcdet_freeze import openpcdet, set_bn_eval

    sys.path.insert(0, ".")
    openpcdet.install()
    from pcdet.models import build_network

    cfg = EasyDict(yaml.safe_load(Path("tools/cfgs/toy_models/pv_rcnn.yaml").read_text())).MODEL
    cfg.NOT_TRAIN_IN_MULTI_TASK, cfg.FREEZE = ["vfe", "backbone_3d"], EasyDict(ALLOW_RANDOM=True)
    dataset = SimpleNamespace(class_names=["Car"], logger=logging.getLogger("standin"))
    model = build_network(cfg, 1, dataset)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(trainable),
        "loader": [],
        "set_bn_eval": set_bn_eval,
        "FROZEN": ("vfe.", "backbone_3d."),
    }
