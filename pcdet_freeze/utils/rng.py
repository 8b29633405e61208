"""Seed all random generators, and save, compare and restore their state.

The state of a generator is on the host, that of a CUDA device too: nothing here waits for a device.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

DEVICES = ("cuda", "xpu", "mps")
"""device types with generators of their own; that of a device outside of torch is added"""
OWN_GENERATORS = (torch.Generator, random.Random, np.random.RandomState, np.random.Generator)


def set_seed(seed: int) -> None:
    """Seed Python, numpy and torch (the CPU and all devices) of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def rng_state(accelerators: bool = True) -> dict[str, Any]:
    """State of all generators as ints, lists and tensors, which ``torch.load(weights_only=True)`` accepts.

    With ``accelerators``, for each device type that is available, as ``cuda``, it is a list with one state a
    device.
    """
    version, words, gauss = random.getstate()
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": [version, list(words), gauss],
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys, np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    for device, module in _device_modules() if accelerators else ():
        state[device] = [module.get_rng_state(*which) for which in _arguments(device, module)]
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Restore the state that :func:`rng_state` returned.

    Devices that the state does not contain keep theirs. The state of a single CUDA device, as older
    checkpoints have it, is that of the current device.
    """
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    for device, module in _device_modules():
        saved = state.get(device, [])
        if isinstance(saved, Tensor):
            module.set_rng_state(saved.cpu())
            continue
        for own, which in zip(saved, _arguments(device, module), strict=False):
            module.set_rng_state(own.cpu(), *which)


def same_rng_state(a: Any, b: Any) -> bool:
    """Whether two states of generators are equal: whether no numbers were drawn between them."""
    if isinstance(a, Tensor | np.ndarray):
        return bool((a == b).all())
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same_rng_state(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same_rng_state, a, b))
    return bool(a == b)


def _device_modules() -> Iterator[tuple[str, Any]]:
    """(name, module) of each device type that is available, as ``("cuda", torch.cuda)``."""
    for name in dict.fromkeys([*DEVICES, torch._C._get_privateuse1_backend_name()]):
        module: Any = getattr(torch, name, None)
        if hasattr(module, "get_rng_state") and module.is_available():
            yield name, module


def _arguments(device: str, module: Any) -> list[tuple[int, ...]]:
    """Arguments of ``get_rng_state`` for each device; torch.mps has one device, without a number."""
    return [()] if device == "mps" else [(index,) for index in range(module.device_count())]


@contextmanager
def untouched_rng(accelerators: bool = True) -> Iterator[None]:
    """Restore the state of all generators on exit; without ``accelerators``, of those on the CPU alone.

    To read the generator of a device opens a context on it.
    """
    state = rng_state(accelerators)
    try:
        yield
    finally:
        set_rng_state(state)


class Generators:
    """The global generators, and generators that an object owns, which no global seed reaches.

    Args:
        own: objects of the classes in ``OWN_GENERATORS``.
    """

    def __init__(self, own: Iterable[Any] = ()) -> None:
        self.own = list({id(generator): generator for generator in own}.values())

    def state(self) -> list[Any]:
        """State of all of them, for :func:`same_rng_state` and :meth:`restore`."""
        return [rng_state(), *map(_own_state, self.own)]

    def restore(self, state: list[Any]) -> None:
        """Restore what :meth:`state` returned."""
        set_rng_state(state[0])
        for generator, saved in zip(self.own, state[1:], strict=True):
            _set_own_state(generator, saved)

    def seed(self, seed: int) -> None:
        """Seed all of them."""
        set_seed(seed)
        for generator in self.own:
            if isinstance(generator, torch.Generator):
                generator.manual_seed(seed)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = type(generator.bit_generator)(seed).state
            else:
                generator.seed(seed)


def _own_state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, random.Random):
        return generator.getstate()
    return generator.get_state()


def _set_own_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
