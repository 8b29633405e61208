"""What the determinism check (H3) costs a first step, and that it changes nothing of it."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from first_steps_toys import Loop, Part
from torch import Tensor, nn

from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.checks import determinism
from pcdet_freeze.freezing.verification.certificate import digests_of
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.memory import peak_bytes, storages

CPU = torch.device("cpu")


class Recorder:
    """Records each forward of a part in a list that is no attribute of the part."""

    def __init__(self) -> None:
        self.modes: list[bool] = []
        self.outputs: list[weakref.ref[Tensor]] = []
        self.dispatch_modes: list[int] = []
        """number of modes that see each operator"""
        self.alive: list[int] = []
        """outputs of other runs that were alive when a run began"""

    def part(self) -> nn.Module:
        def forward(self_: Part, x: Tensor) -> Tensor:
            self.modes.append(self_.training)
            self.dispatch_modes.append(torch._C._len_torch_dispatch_stack())
            self.alive.append(sum(output() is not None for output in self.outputs))
            output = self_.linear(x)
            self.outputs.append(weakref.ref(output))
            return output

        return type("Recorded", (Part,), {"forward": forward})()


def test_h3_a_frozen_module_runs_three_times_in_the_first_step_and_then_once() -> None:
    recorder = Recorder()
    loop = Loop(recorder.part())
    for _ in range(3):
        loop.step()
    assert recorder.modes == [True, False, True, True, True]


def test_h3_one_mode_sees_the_operators_of_a_rerun() -> None:
    recorder = Recorder()
    Loop(recorder.part()).step()
    assert recorder.dispatch_modes == [1, 1, 0]


def test_h3_a_rerun_that_agrees_makes_no_further_one_for_noise_or_draws() -> None:
    recorder = Recorder()
    Loop(nn.Sequential(recorder.part(), nn.BatchNorm1d(4), nn.Dropout(0.5))).step()
    assert len(recorder.modes) == 3


def test_h3_no_output_of_another_run_is_alive_while_a_module_runs_in_the_first_step() -> None:
    recorder = Recorder()
    loop = Loop(recorder.part())
    loop.step()
    assert recorder.alive == [0, 0, 0]


def peak_of_first_step(checked: bool) -> int:
    """Peak of live bytes, of a frozen part with 100 kB of output between smaller tensors."""
    torch.manual_seed(0)
    loop = Loop(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU()), checked=checked, rows=6400)
    batch = loop.batch()
    existing = storages([*loop.model.parameters(), *loop.model.buffers(), *batch.values()])
    like = [torch.empty(0, dtype=torch.uint8).set_(storage) for storage in existing]
    return peak_bytes(lambda: loop.step(batch), like, CPU)


def test_h3_the_peak_of_live_bytes_of_the_first_step_grows_by_buffers_of_the_comparison_alone() -> None:
    from pcdet_freeze.freezing.checks.output_sketch import BUCKETS, PIECE

    output = 6400 * 4 * 4
    signs, sums = 2 * PIECE * 8, 3 * (BUCKETS + 2) * 8
    in_float64 = 2 * min(6400 * 4, PIECE) * 8
    assert peak_of_first_step(True) - peak_of_first_step(False) <= signs + sums + in_float64
    assert peak_of_first_step(False) > 2 * output


def trained(make: Callable[[], nn.Module], checked: bool, **more: Any) -> tuple[list[Tensor], Any]:
    torch.manual_seed(0)
    loop = Loop(make(), checked=checked, **more)
    losses = [loop.step() for _ in range(3)]
    state = [value.clone() for value in loop.model.state_dict().values()]
    return [*losses, *state, torch.get_rng_state()], loop


class WritesToItsInput(Part):
    def forward(self, x: Tensor) -> Tensor:
        x.relu_()
        x[:, 0] += 1
        return self.linear(x)


class WritesInEvalMode(Part):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            x.zero_()
            return self.linear(x)
        return self.linear(x) * 0


class WritesToTheBatch(Part):
    takes_batch = True

    def forward(self, batch: dict[str, Any]) -> dict[str, Any]:
        batch["x"] += 1
        batch["seen"] = [*batch.pop("seen", []), 1]
        batch["features"] = self.linear(batch["x"]) * len(batch["seen"])
        return batch


class UpdatesAPlainTensor(Part):
    """Its tensor is no buffer, and changes in place: nothing of the output depends on it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.zeros(1)

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return self.linear(x)


@pytest.mark.parametrize("kind", [WritesToItsInput, WritesToTheBatch, UpdatesAPlainTensor])
def test_h3_a_module_that_writes_to_its_inputs_is_no_finding_and_trains_bit_for_bit_as_without_the_check(
    kind: type[Part], caplog: Any
) -> None:
    checked, loop = trained(kind, True)
    assert all(map(torch.equal, checked, trained(kind, False)[0]))
    assert "not deterministic" not in caplog.text and "run again" not in caplog.text
    assert getattr(loop.model.vfe, "seen", torch.tensor(3.0)) == 3


def test_h3_what_a_module_writes_in_eval_mode_alone_does_not_reach_the_step() -> None:
    class Writes(WritesInEvalMode):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                x.zero_()
            return self.linear(torch.zeros_like(x))

    losses = [trained(Writes, checked)[0][:3] for checked in (True, False)]
    assert all(map(torch.equal, *losses))


def test_h3_an_inplace_write_to_a_saved_tensor_of_the_graph_does_not_break_the_backward() -> None:
    """The part writes in eval mode to a tensor that a trainable module before it has saved."""

    class Writes(Part):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                x.mul_(1)
            return self.linear(x)

    loop = Loop(Writes(), before=nn.Sequential(nn.Linear(4, 4), nn.Sigmoid()))
    loop.step()
    assert loop.model.before[0].weight.grad is not None


def test_h3_with_autocast_parameters_that_train_get_their_gradients_in_the_first_step() -> None:
    """``PARAMETERS: False``: a rerun must not leave weights in autocast's cache that have no graph."""
    loop = Loop(Part(), plan=FreezePlan(("vfe",), parameters=False))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = loop.forward()
    loss.backward()
    assert loop.model.vfe.linear.weight.grad is not None


@pytest.mark.parametrize(
    "error",
    [
        MemoryError("no words"),
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_h3_a_memory_error_in_a_rerun_turns_the_check_off_and_the_training_goes_on(
    error: Exception, caplog: Any
) -> None:
    class NeedsMemory(Part):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise error
            return self.linear(x)

    loop = Loop(nn.Sequential(NeedsMemory()))
    for _ in range(2):
        loop.step()
    assert "is off" in caplog.text and "vfe" in caplog.text and type(error).__name__ in caplog.text
    assert not torch.equal(loop.model.head.weight, loop.start["head.weight"])


@pytest.fixture
def collectives(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What this rank gathers."""
    gathered: list[Any] = []
    gather = distributed.gather
    monkeypatch.setattr(distributed, "gather", lambda value: gathered.append(value) or gather(value))
    return gathered


@pytest.mark.parametrize("parameters", [True, False])
@pytest.mark.parametrize("calls", [0, 1])
def test_h3_where_memory_runs_out_on_one_rank_it_still_calls_the_collectives_that_the_others_call(
    parameters: bool, calls: int, collectives: list[Any], monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    plan = FreezePlan(("vfe",), parameters=parameters)
    Loop(nn.BatchNorm1d(4), plan=plan).step()
    others, digested = len(collectives), list[Any]()

    def digests(tensors: Any) -> dict[str, str]:
        digested.append(tensors)
        if len(digested) > calls:
            raise MemoryError("no room")
        return digests_of(tensors)

    monkeypatch.setattr(determinism, "digests_of", digests)
    Loop(nn.BatchNorm1d(4), plan=plan).step()
    assert len(collectives) == 2 * others > 0 and len(digested) == calls + 1
    assert caplog.text.count("MemoryError: no room") == 1


def test_h3_a_module_that_cannot_run_again_is_a_warning(caplog: Any) -> None:
    class OnceOnly(Part):
        def forward(self, x: Tensor) -> Tensor:
            if not self.training:
                raise KeyError("frame_id")
            return self.linear(x)

    Loop(OnceOnly()).step()
    assert "vfe could not be run again" in caplog.text and "KeyError: 'frame_id'" in caplog.text


class HooksItsInput(Part):
    def forward(self, x: Tensor) -> Tensor:
        x.register_hook(lambda gradient: gradient)
        return self.linear(x)


class DifferentiatesItsInput(Part):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + torch.autograd.grad(x.square().sum(), x, retain_graph=True)[0]


class RetainsGradient(Part):
    def forward(self, x: Tensor) -> Tensor:
        output = self.linear(x)
        output.retain_grad()
        return output


@pytest.mark.parametrize("kind", [HooksItsInput, DifferentiatesItsInput, RetainsGradient])
def test_h3_a_module_that_needs_a_graph_is_a_warning_and_trains_bit_for_bit_as_without_the_check(
    kind: type[Part], caplog: Any
) -> None:
    before = nn.Linear(4, 4)
    checked, unchecked = (trained(kind, on, before=copy.deepcopy(before))[0] for on in (True, False))
    assert all(map(torch.equal, checked, unchecked))
    assert "vfe could not be run again" in caplog.text and "RuntimeError" in caplog.text


def test_h3_inputs_that_cannot_be_copied_are_a_warning(caplog: Any) -> None:
    class Batch(dict):  # type: ignore[type-arg]
        def __copy__(self) -> Any:
            raise TypeError("no copies")

    class ReadsTheBatch(Part):
        takes_batch = True

        def forward(self, batch: Any) -> Any:
            return {"features": self.linear(batch["x"])}

    loop = Loop(ReadsTheBatch())
    loop.step(Batch(loop.batch()))
    assert "vfe could not be run again" in caplog.text and "TypeError: no copies" in caplog.text


def test_h3_an_error_of_the_modules_own_call_is_raised_as_it_is() -> None:
    class Broken(Part):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError("of its own")

    with pytest.raises(ZeroDivisionError, match="of its own"):
        Loop(Broken()).step()


def test_h3_a_compiled_part_stays_compiled_and_one_without_graph_breaks_is_accepted() -> None:
    loop = Loop(torch.compile(nn.Sequential(Part()), backend="eager", fullgraph=True))
    for _ in range(2):
        loop.step()
    assert torch.isfinite(loop.step())
