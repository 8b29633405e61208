"""Random state of Python, numpy and torch."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch

from pcdet_freeze.utils.rng import rng_state, set_rng_state, set_seed, untouched_rng


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
