"""P4: frozen weights are loaded from a checkpoint."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_toy import ToyModel
from torch import nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.checks.pretrained_coverage import LOSS_SCALE, check_pretrained_coverage
from pcdet_freeze.models.loss_weights import NAME, LossScale


class Constants(ToyModel):
    """With constant buffers, random buffers and buffers that look like the start of an average."""

    def __init__(self, width: float = 0.4) -> None:
        super().__init__()
        self.vfe[1].running_var.fill_(0.25)  # statistics, whatever they begin with
        self.vfe.register_buffer("offsets", torch.arange(3) * width)
        self.vfe.register_buffer("grid", torch.ones(2, dtype=torch.long))
        self.vfe.register_buffer("scratch", torch.rand(3), persistent=False)
        self.vfe.register_buffer("drawn", torch.rand(3))
        self.vfe.register_buffer("average", torch.zeros(3))


def refusal(model: nn.Module, loaded: Any, rebuild: Any = None, **options: Any) -> str:
    with pytest.raises(FreezeError) as stopped:
        check_pretrained_coverage(freeze(model, FreezePlan(("vfe",), **options)), loaded, rebuild)
    return str(stopped.value)


def all_but(model: nn.Module, *parts: str) -> list[str]:
    return [name for name in model.state_dict() if not name.endswith(parts)]


def test_p4_without_a_checkpoint_the_module_is_named_once() -> None:
    message = refusal(ToyModel(), ())
    assert "  vfe (6 tensors)\n" in message and "vfe.0" not in message
    assert "--pretrained_model" in message and "FREEZE.ALLOW_RANDOM: [vfe]" in message


def test_p4_loaded_weights_pass() -> None:
    model = ToyModel()
    check_pretrained_coverage(freeze(model, ["vfe"]), all_but(model, "num_batches_tracked", "head.weight"))


def test_p4_the_frozen_part_of_a_module_is_named_not_the_module() -> None:
    with pytest.raises(FreezeError, match=r"\n  vfe\.0 \(2 tensors\)\n[\s\S]*ALLOW_RANDOM: \[vfe\.0\]"):
        check_pretrained_coverage(freeze(ToyModel(), ["vfe.0"]), ())


@pytest.mark.parametrize("missing", ["vfe.1.running_mean", "vfe.0.weight", "vfe.1.bias"])
def test_p4_a_single_tensor_is_named_by_itself(missing: str) -> None:
    model = ToyModel()
    message = refusal(model, all_but(model, missing), ToyModel)
    assert f"  {missing}\n" in message


def test_p4_constant_buffers_are_exempt_but_running_statistics_are_not() -> None:
    model = Constants()
    buffers = ("offsets", "grid", "drawn", "average", "running_var")
    message = refusal(model, all_but(model, *buffers), Constants)
    assert [name for name in buffers if name in message] == ["drawn", "average", "running_var"]


def test_p4_non_persistent_buffers_are_exempt() -> None:
    model = Constants()
    check_pretrained_coverage(freeze(model, ["vfe"]), list(model.state_dict()))


def test_p4_the_learned_loss_weight_of_a_frozen_head_is_exempt() -> None:
    assert NAME == LOSS_SCALE
    model = ToyModel()
    model.vfe.add_module(NAME, LossScale())
    check_pretrained_coverage(freeze(model, ["vfe"]), all_but(model, "log_variance"))
    part = ToyModel()
    part.vfe.add_module(NAME, LossScale())
    with pytest.raises(FreezeError, match=r"vfe\.loss_scale"):
        check_pretrained_coverage(freeze(part, ["vfe.loss_scale"]), ())


def test_p4_a_buffer_is_constant_only_if_a_second_build_has_equal_values() -> None:
    model = Constants()
    assert "vfe.offsets" in refusal(model, all_but(model, "offsets"))
    assert "vfe.offsets" in refusal(model, all_but(model, "offsets"), lambda: Constants(0.5))


def test_p4_the_second_build_leaves_the_random_generators_unchanged() -> None:
    model, rng = Constants(), torch.get_rng_state()
    check_pretrained_coverage(freeze(model, ["vfe"]), all_but(model, "offsets"), Constants)
    assert torch.equal(torch.get_rng_state(), rng)


def test_p4_a_tied_tensor_is_loaded_under_either_name() -> None:
    model = ToyModel()
    model.head = nn.Linear(4, 8)
    model.head.weight = model.vfe[0].weight
    handle = freeze(model, FreezePlan(("vfe",), shared="freeze"))
    check_pretrained_coverage(handle, all_but(model, "vfe.0.weight"))


@pytest.mark.parametrize("allowed", [True, ("vfe",), ("vfe.*",)])
def test_p4_allow_random_accepts_random_weights(allowed: Any) -> None:
    check_pretrained_coverage(freeze(ToyModel(), FreezePlan(("vfe",), allow_random=allowed)), ())


def test_p4_allow_random_for_a_part_still_requires_the_rest() -> None:
    message = refusal(ToyModel(), (), allow_random=("vfe.1",))
    assert "  vfe.0 (2 tensors)\n" in message and "vfe.1" not in message


def test_p4_allow_random_must_name_frozen_modules() -> None:
    assert "nothing is frozen in head" in refusal(ToyModel(), (), allow_random=("head",))


def test_p4_does_not_apply_with_parameters_false() -> None:
    check_pretrained_coverage(freeze(ToyModel(), FreezePlan(("vfe",), parameters=False)), ())


def test_p4_a_step_counter_of_a_module_needs_a_file_and_that_of_the_detector_none() -> None:
    model = ToyModel()
    model.register_buffer("global_step", torch.zeros(1, dtype=torch.long))
    model.vfe.register_buffer("global_step", torch.zeros(1, dtype=torch.long))
    message = refusal(model, all_but(model, "global_step"))
    assert "  vfe.global_step\n" in message and message.count("global_step") == 2  # named, and in the advice
