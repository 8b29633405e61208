"""Buffers under DistributedDataParallel, in two real gloo processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from freeze_toys import Detector, points
from torch import distributed as dist
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from two_processes import HELPERS

from pcdet_freeze import freeze
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.collectives import collective_type

LIVE, FROZEN = "backbone_2d.deblocks.0.1.running_mean", "vfe.1.running_mean"


def buffers_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def step(model: torch.nn.Module, rank: int, count: int) -> None:
    for number in range(count):
        model.train()(points(seed=10 * number + rank)).sum().backward()


class Collectives(TorchDispatchMode):
    """Lists the collectives that are called, with the dtypes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            dtypes = {str(leaf.dtype) for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor)}
            self.calls.append(f"{func.__name__.split('.')[0]} {', '.join(dtypes)}")
        return func(*args, **(kwargs or {}))


def collectives(model: torch.nn.Module, rank: int) -> tuple[dict[str, list[str]], list[Any]]:
    """The collectives of each function, and what was exchanged."""
    text = f"rank {rank}"
    calls: dict[str, Callable[[], Any]] = {
        "gather": lambda: distributed.gather(text),
        "gather more": lambda: distributed.gather(text * (1 + 300 * rank)),
        "from_main": lambda: distributed.from_main(text),
        "from_main more": lambda: distributed.from_main(text * 300),
        "share_buffers": lambda: distributed.share_buffers(model),
    }
    listed, exchanged = {}, []
    for name, call in calls.items():
        with Collectives() as mode:
            exchanged.append(call())
        listed[name] = mode.calls
    return listed, exchanged


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Detector()
    model.vfe[1].running_mean += rank  # another one on each rank: wrapping makes them one
    freeze(model, ["vfe", "backbone_2d.blocks"])
    ddp = distributed.wrap(model, torch.device("cpu"))
    found: dict[str, Any] = {"wrapped": buffers_of(model)}
    versions = [buffer._version for buffer in model.vfe.buffers()]
    step(ddp, rank, 3)
    found["steps"] = buffers_of(model)
    distributed.share_buffers(ddp)
    found["shared"] = buffers_of(model)
    found["collectives"], found["exchanged"] = collectives(model, rank)
    found["versions"] = [buffer._version for buffer in model.vfe.buffers()] == versions
    torch.manual_seed(0)
    alone = Detector()
    freeze(alone, ["vfe", "backbone_2d.blocks"])
    step(alone, rank, 3)
    found["alone"] = buffers_of(alone)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    distributed.stop()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("buffers")
    here = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HELPERS), here]).rstrip(os.pathsep)
    mp.spawn(one_rank, args=(str(folder),), nprocs=2)
    os.environ["PYTHONPATH"] = here
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_wrapping_gives_every_rank_the_buffers_of_rank_0(ranks: list[dict[str, Any]]) -> None:
    assert same(ranks[0]["wrapped"], ranks[1]["wrapped"]) and ranks[1]["wrapped"][FROZEN].sum() == 0


def test_a_forward_broadcasts_no_buffer(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert torch.equal(rank["steps"][LIVE], rank["alone"][LIVE])
    assert not torch.equal(ranks[0]["steps"][LIVE], ranks[1]["steps"][LIVE])


def test_sharing_gives_every_rank_the_buffers_of_rank_0(ranks: list[dict[str, Any]]) -> None:
    assert same(ranks[0]["shared"], ranks[1]["shared"])
    assert same(ranks[0]["shared"], ranks[0]["steps"])


def test_f5_frozen_buffers_are_never_written_to(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["versions"] and ranks[1]["versions"]
    assert torch.equal(ranks[1]["shared"][FROZEN], ranks[1]["wrapped"][FROZEN])


def test_values_are_exchanged_as_tensors_in_one_collective_or_two(ranks: list[dict[str, Any]]) -> None:
    gather, send = "allgather_ torch.uint8", "broadcast_ torch.uint8"
    for rank in ranks:
        assert rank["collectives"] == {
            "gather": [gather],
            "gather more": [gather, gather],
            "from_main": [send],
            "from_main more": [send, send],
            "share_buffers": [send],
        }


def test_exchanged_values_are_complete(ranks: list[dict[str, Any]]) -> None:
    both = ["rank 0", "rank 1"]
    for rank in ranks:
        assert rank["exchanged"] == [both, ["rank 0", "rank 1" * 301], "rank 0", "rank 0" * 300, None]


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ("cpu:gloo,cuda:gloo", "cpu"),
        ("cpu:gloo,cuda:nccl", "cpu"),
        ("cuda:nccl", "cuda"),
        ("cpu:nccl,cuda:nccl", "cuda"),
        ("npu:hccl", "npu"),
    ],
)
def test_collectives_use_the_device_of_a_backend_that_has_no_cpu(config: str, expected: str) -> None:
    assert collective_type(config) == expected
