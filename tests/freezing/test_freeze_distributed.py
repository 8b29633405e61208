"""H5, H7, P1 with two real processes: DistributedDataParallel over gloo."""

from __future__ import annotations

import gc
import os
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from freeze_toys import Detector, points
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel
from two_processes import HELPERS

from pcdet_freeze import CertificateError, FreezeError, FreezePlan, freeze, frozen, unfreeze
from pcdet_freeze.utils import distributed

LIST = ["vfe", "backbone_2d.blocks"]


def refusal(call: Any) -> str:
    try:
        call()
    except FreezeError as error:
        return str(error)
    return "no error"


def train(model: torch.nn.Module, rank: int, steps: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    for step in range(steps):
        model.train()
        optimizer.zero_grad()
        model(points(seed=10 * step + rank)).square().mean().backward()
        optimizer.step()
    return optimizer


def one_rank(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.manual_seed(rank)
    found: dict[str, Any] = {}
    model = Detector()
    handle = freeze(model, LIST)
    ddp = DistributedDataParallel(model)  # broadcasts rank 0's weights: frozen ones too
    handle.renew()
    optimizer = train(ddp, rank, 3)
    handle.verify()
    found["reduced"] = ddp._get_ddp_logging_data()["total_parameter_size_bytes"]
    found["trainable"] = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    found["with state"] = len(optimizer.state)
    found["with gradient"] = [name for name, p in model.named_parameters() if p.grad is not None]
    found["live"] = [name for name, p in model.named_parameters() if p.requires_grad]
    found["certificate"] = freeze(ddp, LIST).certificate().digests
    found["weights"] = [p.detach().sum().item() for p in model.parameters()]
    found["refused"] = [
        refusal(lambda: freeze(ddp, ["dense_head"])),
        refusal(lambda: freeze(model, ["dense_head"])),
        refusal(lambda: unfreeze(model)),
        refusal(lambda: unfreeze(ddp, ["vfe"])),
    ]
    with frozen(ddp, FreezePlan(("dense_head", "backbone_2d"), parameters=False)):
        train(ddp, rank, 1)
    try:
        if rank == 1:
            model.vfe[0].weight.data[0, 0] += 1
        handle.verify()
    except CertificateError as error:
        found["verdict"] = str(error)
    ddp = None
    gc.collect()
    unfreeze(model)
    found["thawed"] = all(p.requires_grad for p in model.parameters())
    torch.save(found, f"{folder}/{rank}.pt")
    dist.barrier()
    distributed.stop()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("gloo")
    here = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HELPERS), here]).rstrip(os.pathsep)
    mp.spawn(one_rank, args=(str(folder),), nprocs=2)
    os.environ["PYTHONPATH"] = here
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_h5_ddp_trains_around_the_frozen_part_and_both_ranks_agree(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["weights"] == ranks[1]["weights"]
    assert ranks[0]["certificate"] == ranks[1]["certificate"]


def test_h7_changing_what_trains_under_a_live_ddp_is_an_error(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert all("under a live DistributedDataParallel" in text for text in rank["refused"])


def test_h7_once_the_ddp_is_gone_it_is_allowed(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["thawed"] and ranks[1]["thawed"]


def test_p1_all_ranks_raise_and_name_the_tensor_and_the_rank(ranks: list[dict[str, Any]]) -> None:
    assert ranks[0]["verdict"] == ranks[1]["verdict"]
    assert ranks[0]["verdict"].splitlines()[1:] == ["  rank 1: vfe.0.weight changed"]


def test_f2_frozen_parameters_have_no_gradient_no_optimizer_state_and_no_all_reduce(
    ranks: list[dict[str, Any]],
) -> None:
    for found in ranks:
        assert found["reduced"] == found["trainable"]
        assert found["with gradient"] == found["live"]
        assert found["with state"] == len(found["live"])
        assert not any(name.startswith(tuple(LIST)) for name in found["live"])
