"""What every step of building a training needs to know, and the data that it builds."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.models import load_data_to_gpu
from pcdet_freeze.utils.distributed import World

FIXED_SEED = 666
Checkpoint = tuple[Path, dict[str, Any]]


@dataclass
class Run:
    """What every step of building needs to know."""

    args: argparse.Namespace
    cfg: Any
    world: World
    device: torch.device
    folders: RunFolders
    logger: logging.Logger
    plan: FreezePlan
    """parsed once, from ``cfg``"""
    seed: int = FIXED_SEED
    loaded: tuple[str, ...] = ()
    """names of the tensors that --pretrained_model supplied"""

    @property
    def batch_size(self) -> int:
        """Samples a step in this process."""
        total = self.args.batch_size
        if total is None:
            return self.cfg.OPTIMIZATION.BATCH_SIZE_PER_GPU
        if total < self.world.size or total % self.world.size:
            raise ConfigError(
                f"--batch_size must be a multiple of the number of processes; got {total} for "
                f"{self.world.size}"
            )
        return total // self.world.size

    @property
    def epochs(self) -> int | None:
        """Length of the run; None where ``--max_iters`` says it."""
        return None if self.args.max_iters else self.args.epochs or self.cfg.OPTIMIZATION.NUM_EPOCHS

    def is_over(self, state: Mapping[str, Any]) -> bool:
        """Whether nothing is left to do from the checkpoint ``state``."""
        key = "it" if self.args.max_iters else "epoch"
        return int(state.get(key) or 0) >= int(self.args.max_iters or self.epochs or 0)


@dataclass
class Data:
    """A data set with its loader and sampler."""

    dataset: Any
    loader: Any
    sampler: Any
    move: Callable[[dict[str, Any], torch.device], None] = load_data_to_gpu
    """brings a batch to the device, and makes what is left to be made there"""


@dataclass(frozen=True)
class RunFolders:
    """The folders of one run; none is made before something is written to it."""

    root: Path
    """logs and the copy of the config"""

    @property
    def ckpt(self) -> Path:
        """``checkpoint_epoch_N.pth`` and ``latest_model.pth``"""
        return self.root / "ckpt"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard events of the training"""
        return self.root / "tensorboard"

    @property
    def eval(self) -> Path:
        """one folder an evaluation"""
        return self.root / "eval"


def run_folders(cfg_file: str | Path, extra_tag: str, output_dir: str | Path | None = None) -> RunFolders:
    """Folders for ``cfgs/<group>/<tag>.yaml``, under ``output_dir`` (default: ``output`` where you stand).

    The group is the path between the last folder called ``cfgs`` and the file; without one, its own folder.
    """
    path = Path(cfg_file)
    parents = path.resolve().parts[:-1]
    last = max((i for i, part in enumerate(parents) if part == "cfgs"), default=len(parents) - 2)
    return RunFolders(Path(output_dir or "output").joinpath(*parents[last + 1 :], path.stem, extra_tag))


Move = Callable[[dict[str, Any], torch.device], None]


def move_with(then: Callable[[dict[str, Any]], None] | None) -> Move:
    """Bring a batch to the device, in place, and then do ``then`` with it there."""
    if then is None:
        return load_data_to_gpu

    def move(batch_dict: dict[str, Any], device: torch.device) -> None:
        load_data_to_gpu(batch_dict, device)
        then(batch_dict)

    return move
