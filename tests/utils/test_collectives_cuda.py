"""Exchange between ranks under NCCL, on all GPUs of the machine, and the waits of packed copies."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from torch import distributed as dist
from torch import nn

from pcdet_freeze.freezing.verification.digest import tensor_digest, tensor_digests
from pcdet_freeze.utils import distributed

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]


def one_rank(rank: int, world: int, folder: str) -> None:
    torch.cuda.set_device(rank)
    where = f"file://{folder}/meet"
    dist.init_process_group("nccl", init_method=where, rank=rank, world_size=world)
    model = nn.BatchNorm1d(3).cuda()
    model.running_mean += rank
    distributed.share_buffers(model)
    found: dict[str, Any] = {
        "gathered": distributed.gather("rank" * (1 + 1000 * rank)),
        "from_main": distributed.from_main(f"rank {rank}"),
        "agreed": distributed.agree([f"finding of {rank}"]),
        "mean": model.running_mean.tolist(),
    }
    distributed.barrier()
    torch.save(found, f"{folder}/{rank}.pt")
    distributed.stop()


def test_under_nccl_all_ranks_exchange_their_values(tmp_path: Path) -> None:
    world = torch.cuda.device_count()
    mp.spawn(one_rank, args=(world, str(tmp_path)), nprocs=world)
    for rank in range(world):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert found["gathered"] == ["rank" * (1 + 1000 * number) for number in range(world)]
        assert found["from_main"] == "rank 0" and found["mean"] == [0.0, 0.0, 0.0]
        assert len(found["agreed"]) == world


def test_p1_the_digests_of_many_tensors_wait_for_the_gpu_once() -> None:
    tensors = [torch.randn(7, 3).to(dtype) for dtype in (torch.float32, torch.float16) for _ in range(50)]
    on_gpu = [tensor.cuda() for tensor in tensors]
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as waits:
            warnings.simplefilter("always")
            found = tensor_digests(on_gpu)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert found == [tensor_digest(tensor) for tensor in tensors]
    assert len([wait for wait in waits if "synchroniz" in str(wait.message)]) == 1
