"""The commands train and test in this process, on a handful of small synthetic scenes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from pcdet_freeze.__main__ import main

ROOT = Path(__file__).resolve().parents[2]
CFG = ROOT / "cfgs" / "synthetic_models" / "pointpillar.yaml"
SMALL = [
    "DATA_CONFIG.NUM_SCENES.train", "6", "DATA_CONFIG.NUM_SCENES.test", "3",
    "DATA_CONFIG.SENSOR.BEAMS", "VLP-16", "DATA_CONFIG.MIN_CARS", "1",
    "MODEL.BACKBONE_2D.LAYER_NUMS", "[1, 1, 1]", "MODEL.BACKBONE_2D.NUM_FILTERS", "[8, 8, 8]",
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS", "[8, 8, 8]", "OPTIMIZATION.REPORT_FRAMES", "0",
]  # fmt: skip
LIST = "MODEL.NOT_TRAIN_IN_MULTI_TASK"
RANDOM = ["MODEL.FREEZE.ALLOW_RANDOM", "True"]
"""what is frozen may be as it was initialised: these runs are about something else than weights"""
FREEZE = [LIST, "[vfe, backbone_2d.blocks]", *RANDOM]


def tool(name: str) -> ModuleType:
    """tools/<name>.py as a module."""
    spec = importlib.util.spec_from_file_location(f"tool_{name}", ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def words(out: Path, *flags: object, sets: list[str] | None = None, cfg: Path = CFG) -> list[str]:
    """A command line that writes below ``out``; flags that are not given are small."""
    base = ["--cfg_file", str(cfg), "--output_dir", str(out), "--workers", "0", "--device", "cpu"]
    return [*base, "--fix_random_seed", *map(str, flags), "--set", *SMALL, *(sets or [])]


def train(out: Path, *flags: object, sets: list[str] | None = None) -> int:
    """Two epochs of three iterations, without evaluation, unless the flags say otherwise."""
    small = ["--batch_size", "2", "--epochs", "2", "--num_epochs_to_eval", "0"]
    return main(["train", *words(out, *small, *flags, sets=sets)])


def folder(out: Path, tag: str = "default") -> Path:
    """Where a run with ``--extra_tag tag`` writes."""
    return out / "synthetic_models" / "pointpillar" / tag


def log_of(out: Path) -> str:
    """What the trainings below ``out`` logged."""
    return "".join(path.read_text() for path in folder(out).glob("train_*.log"))
