"""Ctrl-C while compiled code runs."""

from __future__ import annotations

import importlib
import pkgutil
import signal
import threading
from collections.abc import Iterator
from inspect import getmodule
from types import FunctionType, ModuleType
from typing import Any

import pytest
from numba.core.dispatcher import Dispatcher

import pcdet_freeze
from pcdet_freeze.utils.signals.interrupts import uninterrupted


@pytest.fixture(autouse=True)
def default_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def press(times: int = 1) -> None:
    for _ in range(times):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_takes_effect_after_the_call() -> None:
    done = []

    @uninterrupted
    def compiled(count: int) -> None:
        press(count)
        done.append(count)

    for count in (1, 3):
        with pytest.raises(KeyboardInterrupt):
            compiled(count)
    assert done == [1, 3]


def test_an_uninterrupted_call_returns_its_value_and_restores_the_handler() -> None:
    assert uninterrupted(divmod)(7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        uninterrupted(divmod)(7, 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_another_thread_and_an_ignored_signal_are_left_alone() -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(uninterrupted(abs)(-1)))
    thread.start()
    thread.join()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    results.append(uninterrupted(abs)(-2))
    assert results == [1, 2] and signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(pcdet_freeze.__path__, "pcdet_freeze.")
    return [importlib.import_module(one.name) for one in found if not one.name.endswith("__main__")]


def functions_of(module: ModuleType) -> list[FunctionType]:
    own = [value for value in vars(module).values() if getmodule(value) is module]
    methods = [value for one in own if isinstance(one, type) for value in vars(one).values()]
    return [value for value in own + methods if isinstance(value, FunctionType)]


def places(module: ModuleType) -> list[ModuleType]:
    """The module, and the modules of the package that it has imported as a whole."""
    imported = [value for value in vars(module).values() if isinstance(value, ModuleType)]
    return [module, *(one for one in imported if one.__name__.startswith("pcdet_freeze."))]


def test_python_code_calls_no_compiled_function_without_holding_ctrl_c_back() -> None:
    unprotected = [
        f"{module.__name__}.{function.__name__} calls {name}"
        for module in modules()
        for function in functions_of(module)
        if not hasattr(function, "__wrapped__")
        for name in function.__code__.co_names
        if any(isinstance(getattr(place, name, None), Dispatcher) for place in places(module))
    ]
    assert not unprotected
