"""P1, P7: the certificate sees every change of a bit, and nothing else."""

from __future__ import annotations

import io
from collections.abc import Callable

import pytest
import torch
from freeze_toys import Detector, train_step
from torch import nn

from pcdet_freeze import Certificate, CertificateError, FreezeError, FreezePlan, freeze
from pcdet_freeze.freezing import compare, compare_states
from pcdet_freeze.freezing.verification.digest import tensor_digest, value_digest

NAN = float("nan")


def different(a: torch.Tensor, b: torch.Tensor) -> bool:
    return tensor_digest(a) != tensor_digest(b)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool,
          torch.complex64, torch.float8_e4m3fn]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES)
def test_p1_one_element_of_any_dtype_changes_the_digest(dtype: torch.dtype) -> None:
    a = torch.zeros(3, 2, dtype=dtype)
    b = a.clone()
    b.view(torch.uint8).view(-1)[-1] = 1
    assert different(a, b) and not different(a, a.clone())


def test_p1_bits_count_not_values() -> None:
    a = torch.tensor([0.0, NAN])
    assert different(a, torch.tensor([-0.0, NAN])) and not different(a, torch.tensor([0.0, NAN]))
    payload = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
    assert different(torch.tensor([NAN]), payload)


def test_p1_shape_and_dtype_count_strides_do_not() -> None:
    a = torch.arange(6.0).view(2, 3)
    assert different(a, a.view(3, 2)) and different(a, a.to(torch.float64))
    assert not different(a, a.t().contiguous().t()) and not different(a[:, ::2], a[:, ::2].clone())
    assert not different(torch.arange(2.0)[1::2], torch.ones(1))
    assert different(torch.zeros(0), torch.zeros(0, 2)) and different(torch.zeros(()), torch.zeros(1))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_p1_conjugates_sparse_and_quantised_tensors_have_digests() -> None:
    a = torch.tensor([1 + 2j])
    assert not different(a.conj(), torch.tensor([1 - 2j])) and different(a, a.conj())
    dense = torch.eye(3)
    assert different(dense.to_sparse(), (dense * 2).to_sparse())
    q = [torch.quantize_per_tensor(dense, scale, 0, torch.quint8) for scale in (0.1, 0.2)]
    assert different(*q) and not different(q[0], q[0].clone())


def test_p1_extra_states_are_digested_by_content() -> None:
    one = {"a": torch.zeros(2), "b": [1, {"c"}]}
    same = {"a": torch.zeros(2), "b": [1, {"c"}]}
    assert value_digest(one) == value_digest(same) != value_digest({**one, "b": [2, {"c"}]})


class Stateful(nn.Module):
    """A hidden buffer and an extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("hidden", torch.zeros(2), persistent=False)
        self.calls = {"count": torch.zeros(1)}

    def get_extra_state(self) -> object:
        return self.calls

    def set_extra_state(self, state: object) -> None:
        self.calls = {"count": state["count"].clone()}


def stateful_model() -> Detector:
    model = Detector()
    model.vfe.add_module("state", Stateful())
    return model


def flip_last_bit(tensor: torch.Tensor) -> None:
    tensor.data.view(torch.uint8).view(-1)[0] ^= 1


CHANGES: list[tuple[Callable[[Detector], object], str]] = [
    (lambda m: flip_last_bit(m.vfe[0].weight), "vfe.0.weight"),
    (lambda m: m.vfe[1].running_var.mul_(1.0000001), "vfe.1.running_var"),
    (lambda m: m.vfe[1].num_batches_tracked.add_(1), "vfe.1.num_batches_tracked"),
    (lambda m: m.vfe.state.hidden.add_(1), "vfe.state.hidden"),
    (lambda m: m.vfe.state.calls["count"].add_(1), "vfe.state._extra_state"),
]


@pytest.mark.parametrize(("change", "name"), CHANGES)
def test_p1_a_change_is_found_and_named(change, name: str) -> None:
    model = stateful_model()
    handle = freeze(model, ["vfe"])
    handle.verify()
    change(model)
    with pytest.raises(CertificateError) as caught:
        handle.verify()
    assert str(caught.value).splitlines() == ["frozen state changed:", f"  {name} changed"]


def test_p1_training_changes_no_frozen_tensor_and_trainable_ones_are_not_certified() -> None:
    model = Detector()
    handle = freeze(model, ["vfe", "backbone_2d.blocks"])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for seed in range(3):
        train_step(model, optimizer, seed)
        model.global_step += 1
        handle.verify()


def test_p1_the_plain_form_loads_with_weights_only_and_comes_back_equal() -> None:
    certificate = freeze(stateful_model(), ["vfe"]).certificate()
    file = io.BytesIO()
    torch.save(certificate.to_plain(), file)
    file.seek(0)
    plain = torch.load(file, weights_only=True)
    assert Certificate.from_plain(plain) == certificate
    assert certificate.entries == ("vfe",) and certificate.hidden == ("vfe.state.hidden",)


@pytest.mark.parametrize("wrong", [None, [], {}, {"digests": {}}, {"digests": {}, "version": 99}])
def test_p1_a_foreign_or_newer_certificate_is_refused(wrong: object) -> None:
    with pytest.raises(CertificateError, match="a certificate must be"):
        Certificate.from_plain(wrong)


def test_p1_verify_takes_a_certificate_its_plain_form_or_a_model() -> None:
    model, other = Detector(), Detector()
    handle = freeze(model, ["vfe"])
    certificate = handle.certificate()
    for same in (certificate, certificate.to_plain(), model, nn.DataParallel(model)):
        handle.verify(same)
    with pytest.raises(CertificateError, match=r"vfe\.0\.weight changed"):
        handle.verify(other)


def test_p1_wrapped_and_plain_models_have_the_same_certificate() -> None:
    model = Detector()
    plain = freeze(model, ["vfe"]).certificate()
    wrapped = freeze(torch.compile(nn.DataParallel(model), backend="eager"), ["vfe"]).certificate()
    assert plain.digests == wrapped.digests and compare(plain, wrapped) == []


def test_p1_compare_names_what_changed_went_and_came() -> None:
    model = Detector()
    before = freeze(model, ["vfe"]).certificate()
    model.vfe[0] = nn.Linear(4, 9)
    after = freeze(model, ["vfe"]).certificate()
    assert compare(before, after) == [
        "vfe.0.weight changed from float32[8,4] to float32[9,4]", "vfe.0.bias is new"]  # fmt: skip
    assert compare(after, before)[-1] == "vfe.0.bias is missing"


def test_p1_ignore_leaves_buffers_out_and_only_buffers() -> None:
    model = Detector()
    plan = FreezePlan(("vfe",), ignore=("vfe.1.num_*",))
    handle = freeze(model, plan)
    model.vfe[1].num_batches_tracked += 1
    handle.verify()
    handle.release()
    for wrong, reason in (("vfe.0.weight", "is a parameter"), ("vfe.1.mean", "names none. Nearest")):
        with pytest.raises(FreezeError, match=reason):
            freeze(model, FreezePlan(("vfe",), ignore=(wrong,)))


def test_p1_verify_without_a_certificate_says_so() -> None:
    with pytest.raises(FreezeError, match="none was computed"):
        freeze(Detector(), ["vfe"], certify=False).verify()


def test_p7_two_states_are_compared_bit_for_bit_under_the_entries() -> None:
    a, b = Detector().state_dict(), {}
    b = {"module._orig_mod." + name: tensor.clone() for name, tensor in a.items()}
    assert compare_states(a, b, ["vfe", "backbone_2d.*", "!backbone_2d.deblocks"]) == []
    flip_last_bit(b["module._orig_mod.vfe.0.weight"])
    b["module._orig_mod.dense_head.bias"] += 1
    b["module._orig_mod.global_step"] += 1
    del b["module._orig_mod.vfe.1.bias"]
    assert compare_states(a, b, ["vfe"]) == ["vfe.0.weight changed", "vfe.1.bias is missing"]
    assert compare_states(b, a, ["v*"]) == ["vfe.0.weight changed", "vfe.1.bias is new"]
    assert compare_states(a, b, ["vfe"], only=["vfe.1.running_mean"]) == []


def test_p7_an_entry_that_matches_no_key_is_an_error_with_the_nearest_names() -> None:
    state = Detector().state_dict()
    with pytest.raises(FreezeError) as caught:
        compare_states(state, state, ["vef", "vfe", "vfe.0.weight"])
    assert "'vef' names no module of either checkpoint. Nearest: vfe" in str(caught.value)
    assert "'vfe.0.weight' names no module" in str(caught.value)
