"""Process groups, collectives over all ranks, and the model in DistributedDataParallel.

Every function here also works in a single process, where it does nothing, so that callers need no branches.
"""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn

from pcdet_freeze.errors import ConfigError, PCDetFreezeError
from pcdet_freeze.utils.collectives import (
    all_gather_bytes,
    broadcast_bytes,
    broadcast_tensors,
    collective_device,
)
from pcdet_freeze.utils.fresh_store import fresh_store
from pcdet_freeze.utils.wrappers import unwrap as unwrap

T = TypeVar("T")

# A gloo thread frees the tensors of the last collective shortly after it returned, and needs the interpreter
# lock. If the interpreter has ended by then, the process aborts with "terminate called without an active
# exception". The pause lets the thread finish.
GLOO_SETTLES_S = 0.2
GROUP_WAITS_LONGER_S = 30
"""a rank that hangs is named first (engine/ranks), then the collective that waits for it ends"""


@dataclass(frozen=True)
class World:
    """This process among its peers."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_main(self) -> bool:
        """True in the one process that writes logs and checkpoints."""
        return self.rank == 0


def start(launcher: str, tcp_port: int = 18888, device: str | None = None, timeout: float = 600) -> World:
    """Join the process group that ``launcher`` ('none', 'pytorch' or 'slurm') describes.

    A collective fails ``GROUP_WAITS_LONGER_S`` after ``timeout`` seconds.

    NCCL where the work is done by CUDA, gloo on CPU. Raises ConfigError where the launcher's variables are
    missing.
    """
    if launcher == "none":
        return World()
    world = {"pytorch": _torchrun_world, "slurm": _slurm_world}[launcher](tcp_port)
    use_cuda = pick_device(device, world).type == "cuda"
    if use_cuda:
        torch.cuda.set_device(world.local_rank % torch.cuda.device_count())
    wait = timedelta(seconds=timeout + GROUP_WAITS_LONGER_S)
    meet = dist.rendezvous  # type: ignore[attr-defined]  # not in __all__
    shared = next(meet("env://", world.rank, world.size, timeout=wait))[0]
    store = fresh_store(shared, world.rank, world.size, timeout)
    backend = "nccl" if use_cuda else "gloo"
    dist.init_process_group(backend, store=store, rank=world.rank, world_size=world.size, timeout=wait)
    return world


def _torchrun_world(tcp_port: int) -> World:
    try:
        rank, size, local = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    except KeyError as missing:
        raise ConfigError(
            f"--launcher pytorch needs the variables that torchrun sets; {missing.args[0]} is not set. "
            "Start with: torchrun --nproc_per_node=N tools/train.py --launcher pytorch ..."
        ) from None
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", str(tcp_port))
    return World(rank, size, local)


def _slurm_world(tcp_port: int) -> World:
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_NODELIST")
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ConfigError(
            f"--launcher slurm needs the variables that srun sets; {', '.join(missing)} not set. "
            "Start with: srun --ntasks=N python tools/train.py --launcher slurm ..."
        )
    os.environ["MASTER_ADDR"] = _first_host(os.environ["SLURM_NODELIST"])
    os.environ["MASTER_PORT"] = str(tcp_port)
    return World(*(int(os.environ[name]) for name in names[:3]))


def _first_host(nodes: str) -> str:
    """The first host of SLURM_NODELIST: ``gpu[03-07,12]`` is read by slurm's own command."""
    if re.fullmatch(r"[\w.-]+", nodes):
        return nodes
    command = ["scontrol", "show", "hostnames", nodes]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        raise ConfigError(
            f"--launcher slurm asks `{' '.join(command)}` for the first host, but it failed ({error}). Start "
            "within slurm, or use torchrun with --launcher pytorch"
        ) from error


def stop() -> None:
    """Leave the process group, if there is one."""
    if is_distributed():
        settle()  # torch 2.2 holds the GIL while it waits for these threads, which may need it: a deadlock
        dist.destroy_process_group()
        settle()


def settle() -> None:
    """Wait until gloo's threads have freed the last collective, so that the process can end."""
    time.sleep(GLOO_SETTLES_S)


def pick_device(wanted: str | None, world: World | None = None) -> torch.device:
    """The device of this process: ``wanted``, else its CUDA device, else the CPU."""
    if wanted is not None and wanted != "cuda":
        return _named_device(wanted)
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda needs a CUDA device; none was found. Use --device cpu")
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", (world or World()).local_rank % torch.cuda.device_count())


def _named_device(wanted: str) -> torch.device:
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise ConfigError(f"--device must be cpu, cuda or cuda:N; got {wanted!r}") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {wanted} needs a CUDA device that is not there. Use --device cpu")
    return device


def is_distributed() -> bool:
    """Whether there is a process group."""
    return dist.is_available() and dist.is_initialized()


def rank() -> int:
    """Rank of this process; 0 without a process group."""
    return dist.get_rank() if is_distributed() else 0


def world_size() -> int:
    """Number of processes; 1 without a process group."""
    return dist.get_world_size() if is_distributed() else 1


def barrier() -> None:
    """Wait until every rank is here."""
    if is_distributed():
        device = collective_device()
        dist.barrier(device_ids=[device.index] if device.type == "cuda" else None)


def gather(value: T) -> list[T]:
    """``value`` of every rank, in rank order, on every rank. Values are pickled: keep them small."""
    if not is_distributed():
        return [value]
    return [pickle.loads(data) for data in all_gather_bytes(pickle.dumps(value))]


def from_main(value: T) -> T:
    """Rank 0's ``value``, on every rank."""
    if not is_distributed():
        return value
    found: T = pickle.loads(broadcast_bytes(pickle.dumps(value) if rank() == 0 else b""))
    return found


def main_only(call: Callable[[], object]) -> None:
    """Call ``call`` on rank 0 while the others wait; its PCDetFreezeError is raised on every rank."""
    fault: PCDetFreezeError | None = None
    if rank() == 0:
        try:
            call()
        except PCDetFreezeError as error:
            fault = error
    if (fault := from_main(fault)) is not None:
        raise fault


def lost_a_rank(error: BaseException) -> bool:
    """Whether ``error`` is a collective's that cannot reach another rank any more."""
    kinds = [getattr(dist, name, ()) for name in ("DistBackendError", "DistNetworkError", "DistStoreError")]
    if any(isinstance(error, kind) for kind in kinds):
        return True
    return isinstance(error, RuntimeError) and "gloo/transport" in str(error)


def reduce_sum(values: dict[str, float]) -> dict[str, float]:
    """Key-wise sum over all ranks; a key that a rank lacks counts as zero."""
    total: dict[str, float] = {}
    for part in gather(dict(values)):
        for key, value in part.items():
            total[key] = total.get(key, 0) + value
    return total


def wrap(model: nn.Module, device: torch.device) -> nn.Module:
    """``model`` in DistributedDataParallel where there is a process group, else ``model`` itself.

    Never with ``find_unused_parameters``: DDP is given no parameter that does not train. Nor with
    ``broadcast_buffers``: rank 0's buffers are copied to every rank once, here, and then at the end of each
    epoch, before each checkpoint and before each evaluation (:func:`share_buffers`). A copy before every
    forward would also write to the buffers of frozen modules.
    """
    if not is_distributed():
        return model
    share_buffers(model)
    ids = [device.index] if device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(model, device_ids=ids, broadcast_buffers=False)


def share_buffers(model: nn.Module) -> None:
    """Copy rank 0's buffers to every rank: running statistics differ between ranks after a step.

    A buffer that is the same already is not written to, so that a frozen one keeps its version.
    """
    if is_distributed():
        broadcast_tensors(list(unwrap(model).buffers()))


def agree(findings: Sequence[str]) -> list[str]:
    """The findings of all ranks, each line with its rank; in a single process, ``findings`` as they are.

    Every rank of the default group must call this.
    """
    if world_size() == 1:
        return list(findings)
    return [f"rank {rank}: {line}" for rank, lines in enumerate(gather(list(findings))) for line in lines]
