"""Two real gloo processes, started by torchrun."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_toy import assert_same_state, files_in
from torch import nn
from two_processes import torchrun, worker

from pcdet_freeze.engine.testing.evaluator import interleave
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    out = tmp_path_factory.mktemp("ranks")
    done = torchrun(worker("distributed_worker.py"), str(out))
    assert done.returncode == 0, done.stderr[-3000:]
    return out, [torch.load(out / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("run", ["plain", "frozen", "thawed"])
def test_both_ranks_end_with_the_same_weights_and_statistics(two_ranks: Any, run: str) -> None:
    _, (first, second) = two_ranks
    assert_same_state(first[run]["after"], second[run]["after"])
    assert first[run]["iterations"] == 4


def test_a_run_under_ddp_moves_what_trains_and_nothing_that_is_frozen(two_ranks: Any) -> None:
    _, (first, _) = two_ranks
    for run, still in (("plain", ()), ("frozen", ("vfe",))):
        before, after = first[run]["before"], first[run]["after"]
        moved = {name for name in before if not torch.equal(before[name], after[name])}
        assert moved == {name for name in before if not name.startswith(still)}


def test_what_starts_to_train_in_the_middle_is_averaged_over_the_ranks(two_ranks: Any) -> None:
    _, (first, _) = two_ranks
    assert not torch.equal(first["thawed"]["before"]["head.weight"], first["thawed"]["after"]["head.weight"])


@pytest.mark.parametrize("run", ["plain", "frozen"])
def test_rank_0_alone_writes_checkpoints_with_the_generators_of_all(two_ranks: Any, run: str) -> None:
    out, (first, _) = two_ranks
    assert files_in(out / run) == ["checkpoint_epoch_1.pth", "checkpoint_epoch_2.pth"]
    state = load_checkpoint(out / run / "checkpoint_epoch_2.pth")
    assert_same_state(state["model_state"], first[run]["after"])
    assert len(state[CHECKPOINT_KEY]["rng"]) == 2
    assert not torch.equal(state[CHECKPOINT_KEY]["rng"][0]["torch"], state[CHECKPOINT_KEY]["rng"][1]["torch"])


def test_r1_two_ranks_resumed_in_mid_epoch_end_as_without_a_break(two_ranks: Any) -> None:
    for found in two_ranks[1]:
        assert_same_state(found["parts"]["after"], found["frozen"]["after"])


def test_p1_a_change_on_one_rank_stops_both_and_names_tensor_and_rank(two_ranks: Any) -> None:
    for found in two_ranks[1]:
        assert "vfe.0.weight" in found["verdict"] and "rank 1" in found["verdict"]


def test_ranks_agree(two_ranks: Any) -> None:
    for found in two_ranks[1]:
        assert found["gathered"] == [0, 10]
        assert found["from_main"] == "rank 0"
        assert found["sum"] == {"a": 3.0, "only0": 1.0, "only1": 1.0}


def test_predictions_of_ranks_are_merged_without_loss_or_duplicate(two_ranks: Any) -> None:
    for found in two_ranks[1]:
        assert [anno["frame_id"] for anno in found["merged"]] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("frames", "world"), [(1, 2), (5, 2), (6, 2), (7, 3), (2, 4)])
def test_interleaving_gives_each_frame_once(frames: int, world: int) -> None:
    longest = -(-frames // world)
    filled = [{"frame_id": i % frames} for i in range(longest * world)]
    merged = interleave([filled[rank::world] for rank in range(world)], frames)
    assert [anno["frame_id"] for anno in merged] == list(range(frames))


def test_in_one_process_the_helpers_do_nothing() -> None:
    model = nn.Linear(1, 1)
    assert distributed.start("none") == distributed.World(0, 1, 0)
    assert distributed.wrap(model, torch.device("cpu")) is model
    assert distributed.gather(3) == [3] and distributed.from_main(4) == 4
    assert distributed.reduce_sum({"a": 1.0}) == {"a": 1.0}


def test_unwrap_sees_through_torch_compile() -> None:
    model = nn.Linear(1, 1)
    assert distributed.unwrap(torch.compile(model, backend="eager")) is model


@pytest.mark.parametrize(("launcher", "names"), [("pytorch", "torchrun"), ("slurm", "srun")])
def test_a_launcher_without_its_variables_is_an_error_that_says_how_to_start(
    launcher: str, names: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=names):
        distributed.start(launcher)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none_is_an_error() -> None:
    with pytest.raises(ConfigError, match="--device cpu"):
        distributed.pick_device("cuda")


def slurm(monkeypatch: pytest.MonkeyPatch, nodes: str) -> None:
    """The variables of srun, for the one process of one task, where slurm's commands are not there."""
    for name, value in {"PROCID": "0", "NTASKS": "1", "LOCALID": "0", "NODELIST": nodes}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setenv("PATH", "")
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")


def test_slurm_on_one_node_needs_no_command_of_slurms(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    try:
        assert distributed.start("slurm", port, "cpu") == distributed.World(0, 1, 0)
        assert distributed.gather(3) == [3] and distributed.world_size() == 1
    finally:
        distributed.stop()


def test_slurm_on_several_nodes_says_which_command_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    slurm(monkeypatch, "gpu[03-07]")
    with pytest.raises(ConfigError, match=r"`scontrol show hostnames gpu\[03-07\]`.*torchrun"):
        distributed.start("slurm")


@pytest.mark.parametrize(("device", "message"), [("gpu", "cpu, cuda or cuda:N"), ("cuda:99", "not there")])
def test_a_device_that_is_none_is_an_error(device: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        distributed.pick_device(device)
