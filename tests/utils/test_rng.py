"""Random state of Python, numpy and torch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcdet_freeze.utils.rng import (
    Generators,
    rng_state,
    same_rng_state,
    set_rng_state,
    set_seed,
    untouched_rng,
)


def draws() -> list[float]:
    return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.rand(1).item()]


def test_the_same_seed_gives_the_same_draws_of_every_generator() -> None:
    set_seed(5)
    first = draws()
    set_seed(5)
    assert draws() == first
    set_seed(6)
    assert not set(draws()) & set(first)


def test_a_seed_of_more_than_32_bits_is_accepted() -> None:
    set_seed(2**40 + 1)


def test_a_restored_state_continues_the_draws_also_from_a_file(tmp_path: Path) -> None:
    set_seed(0)
    draws()  # one Gaussian number of each pair is still cached by the generators
    torch.save(rng_state(), tmp_path / "rng.pth")
    expected = draws()
    set_rng_state(torch.load(tmp_path / "rng.pth", weights_only=True))
    assert draws() == expected


def test_untouched_rng_restores_the_generators_after_an_error_too() -> None:
    set_seed(0)
    expected = draws()
    set_seed(0)
    with pytest.raises(RuntimeError), untouched_rng():
        draws()
        raise RuntimeError("inside")
    assert draws() == expected


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_states_differ_after_a_draw_from_any_generator_and_only_then(draw: Any) -> None:
    before = rng_state()
    assert same_rng_state(before, rng_state())
    draw()
    assert not same_rng_state(before, rng_state())


@pytest.mark.parametrize(
    ("generator", "draw"),
    [
        (torch.Generator(), lambda own: torch.rand(1, generator=own).item()),
        (random.Random(), lambda own: own.random()),
        (np.random.RandomState(), lambda own: own.rand()),
        (np.random.default_rng(), lambda own: own.random()),
    ],
)
def test_generators_of_an_object_are_seeded_compared_and_restored_too(generator: Any, draw: Any) -> None:
    both = Generators([generator, generator])
    state = both.state()
    first = draw(generator)
    assert len(both.own) == 1 and not same_rng_state(state, both.state())
    both.restore(state)
    assert draw(generator) == first
    both.seed(3)
    seeded = draw(generator)
    both.seed(3)
    assert draw(generator) == seeded


def test_the_state_of_a_single_cuda_device_in_an_older_checkpoint_is_accepted() -> None:
    state = rng_state()
    state["cuda"] = state.get("cuda", [torch.zeros(16, dtype=torch.uint8)])[0]
    expected = draws()
    set_rng_state(state)
    assert draws() == expected


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_the_generator_of_every_device_is_restored() -> None:
    devices = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    state = rng_state()
    expected = [torch.rand(3, device=device).cpu() for device in devices]
    set_rng_state(state)
    assert all(map(torch.equal, expected, [torch.rand(3, device=device).cpu() for device in devices]))
