"""Examine one call of a frozen module: two runs beside the step's own, and more only where they differ.

Before the step's own call the module runs on its inputs in train mode, with the state of the random
generators that the step's own call will find, and then in eval mode. Nothing of these runs is kept but
sketches of the outputs, and no run begins before the output of the one before it is freed: memory stays at
what the step itself needs. These runs and the step's own decide:

* the state of a random generator differs after a run: the module draws numbers, which is a fault where
  another seed changes the output, and a note where only train mode draws and no other seed was seen to;
* the outputs in train and eval mode differ by more than rounding: its code depends on ``self.training``;
* the step's own output differs from that of the run before: it depends on earlier calls, or has noise. A
  module that sets attributes of its own runs a second time in a row instead, and so does one that is patched
  for the frozen prefix: its step's own output comes from other kernels.

Only then does it run again, with other seeds, in a row and while everything inside it is recorded, to tell
noise of the kernels (CUDA's atomic adds) from the rest and to name the innermost module at fault.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from pcdet_freeze.freezing.checks.locate import first_difference, first_difference_in_a_row
from pcdet_freeze.freezing.checks.output_sketch import Sketch, max_relative_error
from pcdet_freeze.freezing.checks.rerun_call import Call, Run, run, run_in_a_row
from pcdet_freeze.utils.tensors import tensors_with_path

NOISE = 1e-4
"""relative error between two runs with the same random numbers up to which noise is not mentioned"""
MOST_NOISE = 3e-2
"""relative error that noise of the kernels does not reach, in 16 bits either"""
ROUNDING = 1e-3
"""relative error allowed between train and eval mode, which may use different kernels"""
HALF_ROUNDING = 3e-2
"""the same for outputs of 16 bits"""
NOISE_FACTOR = 4
"""a difference up to so many times the noise counts as noise: few runs underestimate it"""
NOISE_RUNS = 5
"""atomic adds may agree by chance: so many runs look for noise before a difference counts as another fault"""
SEEDS = (20, 21)


@dataclass(frozen=True)
class Finding:
    """A module that is not deterministic."""

    path: str
    kind: str
    why: str
    fixed_by_eval: bool = True
    """whether it is deterministic in eval mode"""
    is_noise: bool = False
    """whether only the noise of its kernels differs"""
    is_rare: bool = False
    """whether the numbers that it draws in train mode changed no output yet"""

    def __str__(self) -> str:
        """As ``vfe.1 (Noise) is not deterministic: its forward() draws random numbers``."""
        return f"{self.path} ({self.kind}) {self.why}"


class CallExamination:
    """Examines one call: two runs before it, and a verdict after it.

    >>> examination = CallExamination(call, (args, kwargs))
    >>> examination.run_as_called()
    >>> examination.run_in_eval()
    >>> finding = examination.after(module(*args, **kwargs))

    Args:
        inputs: of the step's own call; those of ``call`` share their memory.
    """

    def __init__(self, call: Call, inputs: Any) -> None:
        self.call = call
        self._inputs = [(tensor, _version(tensor)) for _, tensor in tensors_with_path(inputs)]
        self._in_eval: Run | None = None
        self._runs: list[Run] = []

    def run_as_called(self) -> None:
        """Run the module before the step's own call, in the mode that this will have."""
        self._runs = run_in_a_row(self.call, self.call.training, times=2 if self.call.is_patched else None)
        if any(one.writes_inputs for one in self._runs):
            self.call.keep_inputs()

    def run_in_eval(self) -> None:
        """Run the module in eval mode, after :meth:`run_as_called`."""
        if self.call.training:
            self._in_eval = run(self.call, training=False)

    def after(self, output: Any) -> Finding | None:
        """The innermost module at fault, from the step's own output; None where there is none."""
        again = self._runs[1].output if len(self._runs) > 1 else self._sketch(output)
        differs = max_relative_error(self._runs[0].output, again) > 0
        drawn = _draws(self.call, self.call.training) if self._runs[0].draws else None
        if not self.call.training:
            found = drawn or (_remembers(self.call, training=False) if differs else None)
            return None if found is None else replace(found, fixed_by_eval=False)
        drawn_in_eval = _draws(self.call, training=False) if self._eval_run.draws else None
        if drawn_in_eval is not None and (drawn is None or drawn.path == drawn_in_eval.path):
            return replace(drawn_in_eval, fixed_by_eval=False)
        found = drawn or self._depends_on_mode() or (_in_train_mode(self.call) if differs else None)
        return found or self._draws_in_vain()

    @property
    def _eval_run(self) -> Run:
        assert self._in_eval is not None
        return self._in_eval

    def _sketch(self, output: Any) -> Sketch:
        """Of what the step's own call made or wrote to, as a rerun sketches it."""
        unchanged = {id(tensor) for tensor, version in self._inputs if _version(tensor) == version}
        tensors = tensors_with_path(output)
        return self.call.sketcher({path: tensor for path, tensor in tensors if id(tensor) not in unchanged})

    def _draws_in_vain(self) -> Finding | None:
        """A layer that is left out in one step of a thousand is not seen in a few runs, but it draws."""
        if not self._runs[0].draws or self._eval_run.draws:
            return None
        why = (
            "draws random numbers in train mode only. They did not change its output in this check, but may "
            "do so in other steps"
        )
        return Finding(self.call.path, type(self.call.module).__name__, why, is_rare=True)

    def _depends_on_mode(self) -> Finding | None:
        first, in_eval = self._runs[0].output, self._eval_run.output
        limit = HALF_ROUNDING if any(tensor.is_half for tensor in first.values()) else ROUNDING
        difference = max_relative_error(first, in_eval, common=True)
        if difference <= limit or difference <= (limit := max(limit, NOISE_FACTOR * _noise(self.call, True))):
            return None
        path, kind = first_difference(self.call, (SEEDS[0], True), (SEEDS[0], False), limit)
        why = "differs between train and eval mode: its forward() depends on self.training"
        return Finding(path, kind, why)


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _draws(call: Call, training: bool) -> Finding | None:
    """The module that makes the output with another seed differ, or None."""
    first, second = (run(call, training, seed).output for seed in SEEDS)
    difference = max_relative_error(first, second)
    limit = NOISE_FACTOR * min(_noise(call, training, runs=1), NOISE) if difference else 0.0
    if difference <= limit:
        return None
    path, kind = first_difference(call, (SEEDS[0], training), (SEEDS[1], training), limit)
    return Finding(path, kind, "is not deterministic: its forward() draws random numbers")


def _in_train_mode(call: Call) -> Finding | None:
    found = _remembers(call, training=True)
    if found is None or found.is_noise:
        return found
    in_eval = _remembers(call, training=False)
    return replace(found, fixed_by_eval=in_eval is None or in_eval.is_noise)


def _remembers(call: Call, training: bool) -> Finding | None:
    """The module that makes a second run in a row differ from the first, or whose noise does, or None."""
    first, second = (one.output for one in run_in_a_row(call, training, SEEDS[0]))
    difference = max_relative_error(first, second)
    noise = _noise(call, training, enough=difference / NOISE_FACTOR) if difference else 0.0
    if max(difference, noise) <= NOISE and difference <= NOISE_FACTOR * noise:
        return None
    if difference <= NOISE_FACTOR * noise:
        return _noisy(call, training, max(difference, noise))
    path, kind = first_difference_in_a_row(call, SEEDS[0], training, NOISE_FACTOR * noise)
    return Finding(path, kind, "is not deterministic: its forward() depends on earlier calls")


def _noisy(call: Call, training: bool, noise: float) -> Finding:
    path, kind = first_difference(call, (SEEDS[0], training), (SEEDS[0], training), NOISE)
    differ = f"its outputs differ by {noise:.1e} (relative L2) from run to run"
    if noise <= MOST_NOISE:
        why = f"has noisy kernels (atomic adds, for example): with the same random numbers {differ}"
        return Finding(path, kind, why, fixed_by_eval=False, is_noise=True)
    source = (
        "no numbers of a generator of torch, numpy or Python, but earlier calls or something outside of it"
    )
    why = f"is not deterministic: {differ}; its forward() depends on {source}"
    return Finding(path, kind, why)


def _noise(call: Call, training: bool, runs: int = NOISE_RUNS, enough: float = 0.0) -> float:
    """Largest relative error between a run and ``runs`` others that begin with the same state and numbers.

    Args:
        enough: stop where the noise is at least this, if that is above 0.
    """
    first = run(call, training, SEEDS[0]).output
    found = 0.0
    for _ in range(runs):
        found = max(found, max_relative_error(first, run(call, training, SEEDS[0]).output))
        if 0 < enough <= found:
            break
    return found
