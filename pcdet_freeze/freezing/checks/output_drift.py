"""Output drift (P2): outputs of frozen modules at the end of a run, compared with those at its start.

The certificate proves that frozen tensors are equal; this check proves that outputs are. Both states run in
one process, one after the other, on the same batch, device and thread count, in eval mode, in plain float32
(no autocast, no TF32, no autotuning, no BN folding). What frozen modules write is compared bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.checks.unchanged_state import same_buffers
from pcdet_freeze.freezing.data_flow.drift_lint import live_inputs
from pcdet_freeze.freezing.data_flow.module_graph import Stage, stages
from pcdet_freeze.freezing.eval_lock import eval_mode
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.host_copies import to_host
from pcdet_freeze.utils.rng import set_seed, untouched_rng
from pcdet_freeze.utils.tensors import clone_detached, relative_error, tensors_with_path

SEED = 0
NOISE_FACTOR = 100
"""a difference up to so many times the noise of the start counts as noise: few runs underestimate it"""
EXTRA_RUNS = 6
"""further runs of the start where only noise could explain a difference"""
Outputs = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class OutputDrift:
    """Difference between the outputs of one frozen module at the end and at the start."""

    module: str
    feeders: tuple[str, ...]
    """trainable modules that it gets inputs from; with any, drift is expected"""
    errors: dict[str, float]
    """output -> relative error |end - start| / |start| (L2); 0: bitwise equal; inf: other shape, or NaN"""
    noise: dict[str, float]
    """the same between two runs of the start"""

    @property
    def kind(self) -> str:
        """'identical', 'drift' (its inputs train), 'noise' (as between runs of the start), or 'CHANGED'."""
        if not any(self.errors.values()) and not any(self.noise.values()):
            return "identical"
        if self.feeders:
            return "drift"
        within = all(value <= NOISE_FACTOR * self.noise.get(name, 0.0) for name, value in self.errors.items())
        return "noise" if within else "CHANGED"

    def __str__(self) -> str:
        """As ``dense_head: drifted by batch_cls_preds 3.1e-02 (relative L2), since backbone_2d ...``."""
        errors = _figures(self.errors)
        if self.kind == "identical":
            count = f"{len(self.errors)} output{'' if len(self.errors) == 1 else 's'}"
            names = ", ".join([*self.errors][:4]) + (" and others" if len(self.errors) > 4 else "")
            return f"{self.module}: {count} identical to the start's, bit for bit ({names})"
        noise = f"; runs of the start differ by {_figures(self.noise)}" if _figures(self.noise) else ""
        if self.kind == "drift":
            feed = "feeds" if len(self.feeders) == 1 else "feed"
            why = f"since {', '.join(self.feeders)} {feed} it and trained"
            return f"{self.module}: drifted by {errors or 'nothing'} (relative L2), {why}{noise}"
        return f"{self.module}: differs from the start by {errors or 'nothing'} (relative L2){noise}"

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON; infinite values become None."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.errors.items()}
        return {"verdict": self.kind, "fed_by": list(self.feeders), "relative_difference": figures}


def _figures(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in values.items() if value)


def compare_outputs(
    model: nn.Module, start: Mapping[str, Tensor], batch_dict: dict[str, Any]
) -> list[OutputDrift]:
    """Compare the outputs of each fully frozen module now with those in the state ``start``.

    Args:
        model: in the state of the end. It is unchanged afterwards, bit for bit, and so are all generators.
        start: tensors of the start by name; tensors that are not in it are equal at the start and now.
        batch_dict: one batch on the model's device; it is not changed.
    """
    root = unwrap(model)
    inputs = live_inputs(root)
    with untouched_rng(), plain_arithmetic(), eval_mode(root), same_buffers(root):
        end = outputs_of(root, tuple(inputs), batch_dict)
        with state_of(root, start):
            first, *others = (outputs_of(root, tuple(inputs), batch_dict) for _ in range(2))
            if any(
                not feeders and any(_errors(first[name], end[name]).values())
                for name, feeders in inputs.items()
            ):
                # atomic adds may agree by chance: run the start more often before raising an alarm
                others += [outputs_of(root, tuple(inputs), batch_dict) for _ in range(EXTRA_RUNS)]
    return [
        OutputDrift(name, tuple(feeders), _errors(first[name], end[name]), _noise(name, first, others))
        for name, feeders in inputs.items()
    ]


def _noise(name: str, first: Outputs, others: Sequence[Outputs]) -> dict[str, float]:
    """The largest relative error of each output against the first run."""
    found = [_errors(first[name], other[name]) for other in others]
    return {output: max(run.get(output, 0.0) for run in found) for output in dict.fromkeys(chain(*found))}


def _errors(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    names = dict.fromkeys([*before, *after])
    both = {name: name in before and name in after for name in names}
    return {n: relative_error(before[n], after[n]) if both[n] else math.inf for n in names}


@torch.no_grad()
def outputs_of(model: nn.Module, names: tuple[str, ...], batch_dict: dict[str, Any]) -> Outputs:
    """Outputs of the modules ``names`` in one forward, copied to the CPU when each of them ends."""
    found: Outputs = {name: {} for name in names}
    hooks = []
    for stage in stages(model):
        if stage.name in found:
            note, keep = _recorder(stage, found[stage.name])
            hooks += [stage.module.register_forward_pre_hook(note), stage.module.register_forward_hook(keep)]
    try:
        set_seed(SEED)
        model(clone_detached(batch_dict))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _recorder(stage: Stage, found: dict[str, Tensor]) -> tuple[Callable[..., None], Callable[..., None]]:
    given: dict[str, int] = {}

    def note(module: nn.Module, args: tuple[Any, ...]) -> None:
        given.update({key: id(value) for key, value in args[0].items()})

    def keep(module: nn.Module, args: Any, output: Any) -> None:
        written = {
            key: value
            for key, value in output.items()
            if (key in stage.writes if stage.declared else given.get(key) != id(value))
        }
        found.update(to_host(dict(tensors_with_path(written)), copy=True))

    return note, keep


@contextmanager
def state_of(model: nn.Module, start: Mapping[str, Tensor]) -> Iterator[None]:
    """Context in which the model has the values of ``start``; tensor objects stay the same."""
    own = named_tensors(model)
    now = to_host({name: own[name] for name in start}, copy=True)
    try:
        _write(own, start)
        yield
    finally:
        _write(own, now)


@torch.no_grad()
def _write(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        own[name].copy_(value)


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, non-persistent ones too; a shared one under its first name."""
    root = unwrap(model)
    return {**dict(root.named_parameters()), **dict(root.named_buffers())}


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """Context with plain float32: no autocast, no TF32, no autotuning; deterministic convolutions."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    cudnn = torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    )
    try:
        with cudnn, torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)
