"""Names of modules and tensors where something is wrapped, or only looks as if it were (N1, P1)."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from pcdet_freeze import Certificate, CertificateError, freeze, is_frozen
from pcdet_freeze.freezing import compare, compare_states
from pcdet_freeze.freezing.verification.state_diff import plain_state


class Residual(nn.Module):
    """A block of a user's own: its only child is called ``module``; both have a buffer of one name."""

    def __init__(self, steps: float = 1.0) -> None:
        super().__init__()
        self.module = nn.Linear(4, 4)
        self.register_buffer("steps", torch.full((1,), steps))
        self.module.register_buffer("steps", torch.full((1,), steps + 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.module(x)


def residual_model() -> nn.Sequential:
    return nn.Sequential(nn.Sequential(Residual(), nn.BatchNorm1d(4)), nn.Linear(4, 1))


def keys_of(model: nn.Module, top: str) -> set[str]:
    return {key for key in model.state_dict() if key.startswith(top)}


def test_n1_a_module_whose_only_child_is_called_module_is_not_a_wrapper() -> None:
    model = residual_model()
    handle = freeze(model, ["0.0.module"])
    assert handle.names == ("0.0.module",) and not model[0][0].module.weight.requires_grad


def test_p1_a_certificate_names_tensors_as_the_state_dict_does() -> None:
    model = residual_model()
    model[0][0].register_buffer("hidden", torch.zeros(1), persistent=False)
    model[0][0].module.register_buffer("hidden", torch.zeros(1), persistent=False)
    certificate = freeze(model, ["0"]).certificate()
    assert set(certificate.hidden) == {"0.0.hidden", "0.0.module.hidden"}
    assert set(certificate.digests) == {*keys_of(model, "0."), *certificate.hidden}


@pytest.mark.parametrize("name", ["0.0.steps", "0.0.module.steps", "0.0.module.weight"])
def test_p1_a_change_in_such_a_module_is_found_under_its_own_name(name: str) -> None:
    model = residual_model()
    handle = freeze(model, ["0"])
    model.state_dict()[name].add_(1)
    with pytest.raises(CertificateError, match=name.replace(".", r"\.") + " changed"):
        handle.verify()


def test_p1_an_averaged_model_inside_the_trunk_is_a_module_with_state_of_its_own() -> None:
    model = residual_model()
    model[0].add_module("teacher", AveragedModel(nn.Linear(4, 4)))
    handle = freeze(model, ["0.teacher.module"])
    assert set(handle.certificate().digests) == keys_of(model, "0.teacher.module.")
    assert handle.names == ("0.teacher.module",) and is_frozen(model[0].teacher.module)


def test_n1_an_averaged_model_around_the_whole_model_is_seen_through() -> None:
    model = residual_model()
    handle = freeze(AveragedModel(model), ["0"])
    assert handle.names == ("0",) and "0.0.module.weight" in handle.certificate().digests


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda part: torch.compile(part, backend="eager")])
def test_p1_wrapping_a_part_changes_names_as_in_the_state_dict_and_no_verdict(wrap) -> None:
    model = residual_model()
    handle, plain = freeze(model, ["0"]), copy.deepcopy(model)
    before = handle.certificate()
    model[0][0] = wrap(model[0][0])
    assert set(handle.certificate().digests) == keys_of(model, "0.")
    assert handle.names == ("0",) and compare(before, handle.certificate()) == []
    handle.verify()
    handle.verify(plain)
    handle.sync(plain)


def old_certificate(model: nn.Module) -> Certificate:
    """What 58340af wrote for ``residual_model`` with ``0`` frozen: no segment ``module``, the inner last."""
    now = freeze(model, ["0"]).certificate()
    names = sorted(now.digests, key=lambda name: name.count("."))
    digests = {name.replace(".module", ""): now.digests[name] for name in names}
    return Certificate(digests, now.entries, now.names, version=1)


def test_p1_an_old_certificate_of_such_a_model_is_compared_by_the_tensors_that_it_means() -> None:
    model = residual_model()
    old = old_certificate(model)
    handle = freeze(model, ["0"])
    handle.verify(old)
    handle.verify({**old.to_plain()})
    with torch.no_grad():
        model[0][0].module.weight[0, 0] += 1
        model[0][0].module.steps += 1
    with pytest.raises(CertificateError) as caught:
        handle.verify(old)
    assert "0.0.module.weight changed" in str(caught.value) and "0.0.module.steps changed" in str(
        caught.value
    )


def test_p1_an_old_certificate_says_nothing_of_the_outer_one_of_two_buffers_with_one_name() -> None:
    model = residual_model()
    old = old_certificate(model)
    model[0][0].steps += 1
    handle = freeze(model, ["0"])
    handle.verify(old)
    assert set(old.matches(model.state_dict())) == keys_of(model, "0.")


def test_p1_only_the_step_counter_of_the_detector_itself_may_change() -> None:
    model = residual_model()
    model.register_buffer("global_step", torch.zeros(1, dtype=torch.long))
    model[0].register_buffer("global_step", torch.zeros(1, dtype=torch.long))
    handle = freeze(model, ["0"])
    model.global_step += 1
    handle.verify()
    model.get_buffer("0.global_step").add_(1)
    with pytest.raises(CertificateError, match=r"0\.global_step changed"):
        handle.verify()


def test_p1_an_old_certificate_left_every_step_counter_out() -> None:
    model = residual_model()
    old = old_certificate(model)
    model[0].register_buffer("global_step", torch.zeros(1, dtype=torch.long))
    freeze(model, ["0"]).verify(old)


def test_p7_a_step_counter_of_a_frozen_module_is_compared_too() -> None:
    a = {"vfe.global_step": torch.zeros(1, dtype=torch.long), "global_step": torch.zeros(1)}
    b = {"vfe.global_step": torch.ones(1, dtype=torch.long), "global_step": torch.ones(1)}
    assert compare_states(a, b, ["vfe"]) == ["vfe.global_step changed"]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "module.module."])
def test_p7_keys_of_a_wrapped_model_are_those_of_the_plain_one(prefix: str) -> None:
    state = residual_model().state_dict()
    wrapped = {prefix + name: tensor for name, tensor in state.items()}
    assert list(plain_state(wrapped)) == list(state) == list(plain_state(state))


def test_p7_a_first_child_called_module_is_no_prefix() -> None:
    state = {"module.weight": torch.zeros(1), "head.weight": torch.zeros(1)}
    assert list(plain_state(state)) == list(state)


def test_p7_keys_that_would_become_one_keep_their_segments() -> None:
    state = {"a._orig_mod.weight": torch.zeros(1), "a.weight": torch.ones(1)}
    assert list(plain_state(state)) == list(state)
