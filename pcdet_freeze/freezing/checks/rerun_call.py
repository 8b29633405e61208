"""Run a call of a module again, before or after the step's own, in another mode or with another seed.

A rerun leaves the module, its inputs and all random generators as they were, and keeps nothing of its output
but a sketch of it (:mod:`.output_sketch`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.checks.output_sketch import Sketch, Sketcher
from pcdet_freeze.freezing.checks.unchanged_state import Attributes, WriteGuard, own_tensors, same_buffers
from pcdet_freeze.freezing.eval_lock import eval_mode
from pcdet_freeze.utils.rng import OWN_GENERATORS, Generators, same_rng_state
from pcdet_freeze.utils.tensors import Copies, tensors_with_path, with_items
from pcdet_freeze.utils.wrappers import is_compiled

NO_FORWARD: Any = object()
"""stands for a module without a forward on the instance"""


@dataclass
class Call:
    """The first outermost call of a frozen module in the first training forward."""

    path: str
    module: nn.Module
    args: tuple[Any, ...]
    """its containers are copies; its tensors share the memory of the module's inputs"""
    kwargs: dict[str, Any]
    training: bool
    """requested mode; a frozen head may run in eval mode"""
    sketcher: Sketcher
    forwards: Mapping[nn.Module, Any] = field(default_factory=dict)
    """the forward of each part on the instance, or NO_FORWARD: others are patched for the frozen prefix"""

    @property
    def is_patched(self) -> bool:
        """Whether the step's own call may use other kernels than the module's own code does."""
        changed = (instance_forward(part) is not own for part, own in self.forwards.items())
        return any(changed) or any(_is_compiled(part) for part in self.module.modules())

    def tensors(self) -> Iterator[Tensor]:
        """Yield the tensors of its inputs."""
        return (tensor for _, tensor in tensors_with_path((self.args, self.kwargs)))

    def keep_inputs(self) -> None:
        """Copy the tensors of the inputs, for a module that writes to them."""
        self.args, self.kwargs = alias((self.args, self.kwargs), lambda tensor: tensor.detach().clone())


@dataclass(frozen=True)
class Run:
    """One rerun."""

    output: Sketch
    draws: bool
    """whether the state of a random generator differs after it"""
    changes_attributes: bool
    """whether it sets attributes of the module, or writes to tensors in them"""
    writes_inputs: bool
    """whether it writes to tensors of its inputs"""


def alias(value: Any, make: Callable[[Tensor], Tensor] = lambda tensor: tensor.data) -> Any:
    """Copy the containers in ``value``; its tensors become ``make(tensor)``, by default without a copy.

    ``tensor.data`` has a version counter of its own: the graph of the training does not see what is written
    to it.
    """
    return _alias(value, make, {})


def _alias(value: Any, make: Callable[[Tensor], Tensor], made: Copies) -> Any:
    if isinstance(value, Tensor):
        return made.setdefault(id(value), (value, make(value)))[1]
    if isinstance(value, list):
        return [_alias(item, make, made) for item in value]
    if isinstance(value, tuple):
        items = [_alias(item, make, made) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if not isinstance(value, dict) and hasattr(value, "replace_feature"):  # spconv's SparseConvTensor
        sparse = value.replace_feature(_alias(value.features, make, made))
        # each layer adds its indices to this dict, and some refuse to find their own there
        sparse.indice_dict = copy(getattr(value, "indice_dict", {}))
        return sparse
    return with_items(value, lambda item: _alias(item, make, made), made)


def run(call: Call, training: bool, seed: int | None = None) -> Run:
    """One run of the call's module on the call's inputs, see :func:`run_in_a_row`."""
    return run_in_a_row(call, training, seed, times=1)[0]


def run_in_a_row(call: Call, training: bool, seed: int | None = None, times: int | None = 2) -> list[Run]:
    """Run the call's module on the call's inputs; state is restored after the last run only.

    Other hooks of the module run in this call too.

    Args:
        seed: of all generators, before each run; None: each run begins with their present state.
        times: number of runs; None: two if the first one changes attributes of the module, otherwise one.
    """
    runs: list[Run] = []
    mode = nullcontext() if training else eval_mode(call.module)
    with _own_forwards(call), _eager(), same_buffers(call.module), mode, _unchanged(call) as kept:
        attributes, generators, guard = kept
        begin = generators.state()
        while not runs or len(runs) < (times or 1 + runs[0].changes_attributes):
            if seed is None:
                generators.restore(begin)
            else:
                generators.seed(seed)
            start = generators.state()
            output, writes = _run(call, guard)
            draws = not same_rng_state(start, generators.state())
            changes = attributes.have_changed or guard.tensors.has_written_any
            runs.append(Run(output, draws, changes, writes))
    return runs


@contextmanager
def _unchanged(call: Call) -> Iterator[tuple[Attributes, Generators, WriteGuard]]:
    """Run without a graph; restore attributes of the module, tensors in them, and all generators."""
    attributes = Attributes(call.module)
    generators = Generators(value for value in attributes.values() if isinstance(value, OWN_GENERATORS))
    begin = generators.state()
    try:
        with torch.no_grad(), _no_autocast_cache(), WriteGuard(own_tensors(call.module, attributes)) as guard:
            yield attributes, generators, guard
    finally:
        attributes.restore()
        generators.restore(begin)


def _run(call: Call, guard: WriteGuard) -> tuple[Sketch, bool]:
    """(sketch of the output, whether the module wrote to its inputs)."""
    with guard.also(call.tensors()) as inputs:
        args, kwargs = alias((call.args, call.kwargs))
        given = {id(tensor): tensor for _, tensor in tensors_with_path((args, kwargs))}
        output = call.module(*args, **kwargs)
        made = {
            path: tensor
            for path, tensor in tensors_with_path(output)
            if id(tensor) not in given or inputs.has_written(tensor)
        }
        return call.sketcher(made), inputs.has_written_any


@contextmanager
def _no_autocast_cache() -> Iterator[None]:
    """Autocast must not find a weight that was cast without a graph when the step's own call follows."""
    enabled = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(enabled)


def _is_compiled(module: nn.Module) -> bool:
    return is_compiled(module) or getattr(module, "_compiled_call_impl", None) is not None


def _eager() -> AbstractContextManager[Any]:
    """Run what torch.compile compiled as it is written: a dispatch mode would make it do so from then on."""
    if "torch._dynamo" not in sys.modules or not hasattr(torch.compiler, "set_stance"):  # torch < 2.6
        return nullcontext()
    stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return stance


@contextmanager
def _own_forwards(call: Call) -> Iterator[None]:
    """Give each part of the module its own forward for a rerun, in place of that of the frozen prefix."""
    patched = {part: instance_forward(part) for part in call.forwards}
    _set_forwards(call.forwards)
    try:
        yield
    finally:
        _set_forwards(patched)


def _set_forwards(forwards: Mapping[nn.Module, Any]) -> None:
    for part, forward in forwards.items():
        if forward is not NO_FORWARD:
            part.__dict__["forward"] = forward
        else:
            part.__dict__.pop("forward", None)


def instance_forward(module: nn.Module) -> Any:
    """The forward in the module's own ``__dict__``, or NO_FORWARD."""
    return module.__dict__.get("forward", NO_FORWARD)
