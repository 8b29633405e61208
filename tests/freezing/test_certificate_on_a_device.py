"""P1: a certificate of tensors on a device: the digests of the CPU, in a few copies."""

from __future__ import annotations

import copy

import fake_device
import pytest
import torch
from fake_device import move_to_device, on_device
from freeze_toys import Detector
from torch import nn

from pcdet_freeze import CertificateError, freeze
from pcdet_freeze.freezing import compare_states
from pcdet_freeze.freezing.verification.digest import tensor_digest, tensor_digests

LIST = ["vfe", "backbone_2d.blocks"]
NAN = torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)
STORED = {
    "float32[2,3]:4edaf0fe20d221bc27cb2558c661fea0": torch.arange(6.0).view(2, 3),
    "float32[1]:f13c2b8e7ded85561c54b1b57e4a6568": NAN,
    "int64[]:8595022fad0579d57e152d56a4c382fd": torch.tensor(5),
    "float32[0,3]:cae66941d9efbd404e4d88758ea67670": torch.zeros(0, 3),
    "bool[1,2]:ead9a09ae23f059006f2bea50e245ff4": torch.tensor([[True, False]]),
    "bfloat16[3,2]:f22eb3641cb7e9ef61c80e1ead690424": torch.arange(6).view(2, 3).t().to(torch.bfloat16),
    "complex64[1]:f76600d11c87295e0d0a3f146dfdff06": torch.tensor([1 + 2j]).conj(),
    "float8_e4m3fn[2]:bf903eafe1cc4401fec6c2df696a7ffe": torch.ones(2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize(("stored", "tensor"), STORED.items())
def test_p1_digests_are_those_of_stored_certificates(stored: str, tensor: torch.Tensor) -> None:
    assert tensor_digest(tensor) == stored and tensor_digests([on_device(tensor)]) == [stored]


def test_p1_the_certificate_of_a_model_on_a_device_is_that_of_the_cpu_in_one_copy() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    on_cpu = handle.certificate()
    move_to_device(model)
    fake_device.copies.clear()
    found = handle.certificate()
    assert found == on_cpu and list(found.digests) == list(on_cpu.digests) and len(found.digests) > 20
    assert len(fake_device.copies) == 1


def test_p1_a_change_on_a_device_is_found_and_named() -> None:
    model = Detector()
    handle = freeze(model, LIST)
    handle.renew()
    move_to_device(model)
    handle.verify()
    model.vfe[0].weight.data[0] += 1
    with pytest.raises(CertificateError, match=r"vfe\.0\.weight changed"):
        handle.verify()


def test_p7_two_states_on_a_device_are_compared_in_one_copy_each() -> None:
    model = Detector()
    other = copy.deepcopy(model)
    nn.init.zeros_(other.vfe[0].weight)
    states = [move_to_device(part).state_dict() for part in (model, other)]
    fake_device.copies.clear()
    assert compare_states(*states, LIST) == ["vfe.0.weight changed"] and len(fake_device.copies) == 2
