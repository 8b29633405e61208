"""Options, device, folders and data of one run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from pcdet_freeze.engine.option_limits import LOWEST, default_workers
from pcdet_freeze.engine.ranks.stop_agreement import StopAgreement
from pcdet_freeze.engine.tracking.process import Trackers
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.models import load_data_to_gpu
from pcdet_freeze.utils.devices import on_side_stream
from pcdet_freeze.utils.distributed import World
from pcdet_freeze.utils.untrusted_files.inside import inside

FIXED_SEED = 666
Checkpoint = tuple[Path, dict[str, Any]]
TAGS = ("extra_tag", "eval_tag")
"""options that are names of folders"""


@dataclass(frozen=True)
class RunOptions:
    """Options that training and evaluation share. Each is a flag of the command of the same name."""

    batch_size: int | None = None
    """samples a step, over all processes; None: OPTIMIZATION.BATCH_SIZE_PER_GPU for each process"""
    workers: int = field(default_factory=default_workers)
    """loader processes of each rank"""
    extra_tag: str = "default"
    """name of the run's folder"""
    output_dir: str | Path | None = None
    """folder for all runs; None: ``output`` in the working directory"""
    ckpt: str | Path | None = None
    """checkpoint to resume from, or to evaluate"""
    pretrained_model: str | Path | None = None
    """checkpoint whose tensors are loaded where name and shape fit"""
    allow_mismatch: bool = False
    """skip pretrained tensors of another shape"""
    trust_checkpoint: bool = False
    """unpickle any object in a checkpoint, which can run code"""
    launcher: str = "none"
    """none, pytorch (torchrun) or slurm"""
    tcp_port: int = 18888
    """port of the process group, where the launcher sets none"""
    start_epoch: int = 0
    """first epoch whose checkpoint is evaluated"""
    save_to_file: bool = False
    """write the predictions as text files"""
    digest: bool = False
    """write digests of all outputs of an evaluation; needs a single process"""
    device: str | None = None
    """cpu, cuda or cuda:N; None: CUDA if available"""
    timeout: float = 600
    """seconds until a rank that does not answer, or an iteration that does not end, is an error"""

    def __post_init__(self) -> None:
        given = {name: getattr(self, name, None) for name in LOWEST}
        faults = [
            f"{name} must be a whole number, {LOWEST[name]} or more; got {value!r}"
            for name, value in given.items()
            if value is not None and not (type(value) is int and value >= LOWEST[name])
        ]
        if not self.timeout > 0:
            faults.append(f"timeout must be a number of seconds above 0; got {self.timeout!r}")
        if faults:
            raise ConfigError("\n".join(faults))
        for name in TAGS:
            inside(Path("output"), getattr(self, name, ""), f"--{name}", ConfigError)


@dataclass(frozen=True)
class TrainOptions(RunOptions):
    """Options of a training."""

    epochs: int | None = None
    """None: OPTIMIZATION.NUM_EPOCHS"""
    max_iters: int | None = None
    """length of the run in iterations, for the schedule too; overrides ``epochs``"""
    sync_bn: bool = False
    """convert norm layers to SyncBatchNorm (CUDA)"""
    fix_random_seed: bool = False
    """seed 666 and deterministic cuDNN, instead of a random seed"""
    ckpt_save_interval: int = 1
    """epochs between two checkpoints"""
    max_ckpt_save_num: int = 30
    """number of ``checkpoint_epoch_N.pth`` files to keep"""
    ckpt_save_time_interval: float = 300
    """seconds between two ``latest_model.pth``"""
    num_epochs_to_eval: int = 1
    """evaluate the checkpoints of the last N epochs; 0: none"""
    logger_iter_interval: int = 50
    """iterations between two log lines"""
    no_savings: bool = False
    """do not measure what freezing saves"""
    use_amp: bool = False
    """mixed precision: float16 on CUDA, bfloat16 on CPU"""
    no_check: bool = False
    """do not check some frames of the training data before the training"""
    requeue: bool = False
    """after SIGUSR1, when the checkpoint is written, run ``scontrol requeue $SLURM_JOB_ID``"""
    tracker: str | None = None
    """wandb, mlflow, both with a comma, or none; None: OPTIMIZATION.TRACKER"""
    notes: tuple[str, ...] = ()
    """lines for the head of the log"""


@dataclass(frozen=True)
class EvalOptions(RunOptions):
    """Options of an evaluation."""

    eval_tag: str = "default"
    """name of the evaluation's folder"""
    ckpt_dir: str | Path | None = None
    """folder of the checkpoints, where all of a run are evaluated; None: the run's own"""
    max_waiting_mins: float = 30
    """minutes to wait for the next checkpoint, where all of a run are evaluated"""
    infer_time: bool = False
    """log the time spent in the model"""


@dataclass
class RunContext:
    """What every step of a run needs to know."""

    options: RunOptions
    cfg: Any
    world: World
    device: torch.device
    folders: RunFolders
    logger: logging.Logger
    plan: FreezePlan
    """parsed once, from ``cfg``"""
    seed: int = FIXED_SEED
    loaded: tuple[str, ...] = ()
    """names of the tensors that were loaded from ``pretrained_model``"""
    pretrained: dict[str, Any] | None = None
    """content of ``pretrained_model``, from the start of the run until the model is built"""
    agreement: StopAgreement | None = None
    """with several ranks: how they stop after the same step"""
    columns: dict[str, tuple[float, ...]] = field(default_factory=dict)
    """range of each column of the training points, on rank 0 (see ``data_check``)"""

    def __post_init__(self) -> None:
        if self.options.digest and self.world.size > 1:
            raise ConfigError(
                f"--digest needs one process that predicts all frames; got {self.world.size}. Leave it out, "
                "and run `pcdet-freeze digest` on the checkpoint."
            )

    @property
    def batch_size(self) -> int:
        """Samples a step in this process."""
        total = self.options.batch_size
        if total is None:
            return self.cfg.OPTIMIZATION.BATCH_SIZE_PER_GPU
        if total < self.world.size or total % self.world.size:
            raise ConfigError(
                f"--batch_size must be a multiple of the number of processes; got {total} for "
                f"{self.world.size}"
            )
        return total // self.world.size


@dataclass
class TrainContext(RunContext):
    """The same for a training."""

    options: TrainOptions
    trackers: Trackers = field(default_factory=Trackers)
    """on rank 0: those of the run"""

    @property
    def epochs(self) -> int | None:
        """Length of the run; None if ``max_iters`` sets it."""
        options = self.options
        return None if options.max_iters else options.epochs or self.cfg.OPTIMIZATION.NUM_EPOCHS

    def is_over(self, state: Mapping[str, Any]) -> bool:
        """Whether the checkpoint ``state`` is the end of this run."""
        key = "it" if self.options.max_iters else "epoch"
        return int(state.get(key) or 0) >= int(self.options.max_iters or self.epochs or 0)


@dataclass
class Data:
    """A data set with its loader and sampler."""

    dataset: Any
    loader: Any
    sampler: Any
    move: Callable[[dict[str, Any], torch.device], None] = load_data_to_gpu
    """moves a batch to the device, in place"""


@dataclass(frozen=True)
class RunFolders:
    """Folders of one run. Each is created when the first file is written to it."""

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


def run_folders(
    cfg_file: str | Path, extra_tag: str = "default", output_dir: str | Path | None = None
) -> RunFolders:
    """Folders for ``cfgs/<group>/<tag>.yaml``, below ``output_dir`` (default: ``output``).

    The group is the path from the last folder called ``cfgs`` to the file; without one, the file's folder.
    """
    path = Path(cfg_file)
    parents = path.resolve().parts[:-1]
    last = max((i for i, part in enumerate(parents) if part == "cfgs"), default=len(parents) - 2)
    root = Path(output_dir or "output").joinpath(*parents[last + 1 :], path.stem)
    return RunFolders(inside(root, extra_tag, "--extra_tag", ConfigError))


def folders_of(cfg: Any, options: RunOptions) -> RunFolders:
    """Folders of a run of ``cfg``; a config that was read from no file goes by the name of its model."""
    if (file := file_of(cfg)) is not None:
        return run_folders(file, options.extra_tag, options.output_dir)
    root = Path(options.output_dir or "output")
    root = inside(root, str(cfg.MODEL.NAME).lower(), "MODEL.NAME", ConfigError)
    return RunFolders(inside(root, options.extra_tag, "--extra_tag", ConfigError))


def file_of(cfg: Any) -> Path | None:
    """The file that ``cfg`` was read from."""
    return getattr(cfg, "_file", None)


Move = Callable[[dict[str, Any], torch.device], None]


def move_with(then: Callable[[dict[str, Any]], None] | None) -> Move:
    """Return a function that moves a batch to the device, in place, and then calls ``then`` on it.

    On CUDA this runs beside the step before (``utils.devices.on_side_stream``).
    """

    def move(batch_dict: dict[str, Any], device: torch.device) -> None:
        with on_side_stream(batch_dict, device):
            load_data_to_gpu(batch_dict, device)
            if then is not None:
                then(batch_dict)

    return move
