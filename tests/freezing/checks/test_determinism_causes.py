"""Which cause the determinism check (H3) names: drawn numbers, noise of kernels, or earlier calls."""

from __future__ import annotations

import os
import random
from typing import Any

import numpy as np
import pytest
import torch
from first_steps_toys import Loop, Part
from torch import Tensor, nn

from pcdet_freeze.errors import FreezeError


class NoisyKernels(Part):
    """Differs from run to run, though it takes numbers from no generator: atomic adds in fp16 do."""

    size = 2e-3
    in_eval = True

    def forward(self, x: Tensor) -> Tensor:
        output = self.linear(x)
        if not self.training and not self.in_eval:
            return output
        noise = np.frombuffer(os.urandom(output.numel()), np.uint8).astype(np.float32) / 128 - 1
        return output * (1 + self.size * torch.from_numpy(noise).view_as(output))


class RarelyNoisy(NoisyKernels):
    size = 5e-6


class NoisyInTrainModeOnly(NoisyKernels):
    in_eval = False


class Unexplained(NoisyInTrainModeOnly):
    size = 1.0


@pytest.mark.parametrize("kind", [NoisyKernels, NoisyInTrainModeOnly])
def test_h3_noise_above_rounding_is_named_as_noise_and_is_no_error(kind: Any, caplog: Any) -> None:
    loop = Loop(kind())
    loop.step()
    assert f"vfe ({kind.__name__}) has noisy kernels" in caplog.text and "e-03" in caplog.text
    assert "draws" not in caplog.text and "earlier calls" not in caplog.text


def test_h3_noise_of_the_last_bits_is_not_mentioned(caplog: Any) -> None:
    for _ in range(10):
        Loop(RarelyNoisy()).step()
    assert caplog.text == ""


def test_h3_a_difference_that_is_too_large_for_noise_is_an_error_with_the_fix() -> None:
    with pytest.raises(FreezeError, match=r"vfe \(Unexplained\) .* from run to run.*FREEZE.EVAL: \[vfe\]"):
        Loop(Unexplained()).step()


class DrawsFrom(Part):
    """Draws in train mode from a generator of its own, which no global seed reaches."""

    def __init__(self, generator: Any) -> None:
        super().__init__()
        self.generator = generator

    def number(self) -> float:
        if isinstance(self.generator, torch.Generator):
            return float(torch.rand((), generator=self.generator))
        return float(self.generator.random())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * (1 + 1e-6 * self.number() if self.training else 1)


GENERATORS = [torch.Generator, random.Random, np.random.RandomState, np.random.default_rng]


@pytest.mark.parametrize("generator", GENERATORS)
def test_h3_draws_from_a_generator_of_the_module_are_named_however_small(generator: Any) -> None:
    part = DrawsFrom(generator())
    first = part.number()
    part = DrawsFrom(generator(1) if generator is not torch.Generator else generator())
    with pytest.raises(FreezeError, match=r"vfe \(DrawsFrom\) .* draws random numbers"):
        Loop(part).step()
    assert first >= 0


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: float(torch.rand(()))])
def test_h3_draws_from_each_global_generator_are_named(draw: Any) -> None:
    class Draws(Part):
        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) * (1 + draw() if self.training else 1)

    with pytest.raises(FreezeError, match=r"vfe \(Draws\) .* draws random numbers"):
        Loop(Draws()).step()


def test_h3_drawn_numbers_that_change_nothing_are_no_finding(caplog: Any) -> None:
    class Idle(Part):
        def forward(self, x: Tensor) -> Tensor:
            torch.rand(3)
            return self.linear(x)

    Loop(Idle()).step()
    assert caplog.text == ""


def test_h3_a_memory_outside_of_the_module_is_named_too() -> None:
    calls: list[int] = []

    class Annealed(Part):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(1)
            return self.linear(x) * (1 + 0.1 * len(calls) if self.training else 1)

    with pytest.raises(FreezeError, match=r"vfe \(Annealed\) .* earlier calls or something outside"):
        Loop(Annealed()).step()


def test_h3_a_change_of_a_large_output_in_one_element_of_many_is_found() -> None:
    class ForgetsOne(Part):
        def forward(self, x: Tensor) -> Tensor:
            output = self.linear(x)
            return torch.cat([output[:1] * (5 if self.training else 1), output[1:]])

    with pytest.raises(FreezeError, match=r"vfe\.0 \(ForgetsOne\) .* depends on self.training"):
        Loop(nn.Sequential(ForgetsOne()), rows=9000).step()
