"""The behaviour proof (P2): the model of the start and that of the end, run side by side on one batch.

A certificate says that frozen tensors are the same. This says that what they compute is: both states run in
one process, one after the other, on the same batch, device and thread count, in eval mode, in plain
arithmetic (no autocast, no TF32, no autotuning, nothing folded). What frozen modules write is compared bit
for bit.
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

from pcdet_freeze.freezing.checks.rerun_call import same_buffers
from pcdet_freeze.freezing.drift_lint import live_inputs
from pcdet_freeze.freezing.eval_lock import eval_mode
from pcdet_freeze.freezing.module_graph import Stage, stages
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.rng import set_seed, untouched_rng
from pcdet_freeze.utils.tensors import clone_detached, relative_error, tensors_with_path

SEED = 0
EXCUSED = 100
"""a difference up to so many times the start's own noise is noise: a rare event may not show in few runs"""
MORE = 6
"""further runs of the start where only its noise could excuse a difference"""
Outputs = dict[str, dict[str, Tensor]]


@dataclass(frozen=True)
class Verdict:
    """How one frozen module behaves at the end, measured against the start."""

    module: str
    feeders: tuple[str, ...]
    """live modules that feed it: with any, it may drift"""
    moved: dict[str, float]
    """output -> |end - start| / |start| (L2); 0: equal to the bit; infinite: of another shape, or NaN"""
    noise: dict[str, float]
    """the same between runs of the start"""

    @property
    def kind(self) -> str:
        """'identical', 'drift' (its inputs train), 'noise' (the start differs from itself), or 'CHANGED'."""
        if not any(self.moved.values()) and not any(self.noise.values()):
            return "identical"
        if self.feeders:
            return "drift"
        within = all(value <= EXCUSED * self.noise.get(name, 0.0) for name, value in self.moved.items())
        return "noise" if within else "CHANGED"

    def __str__(self) -> str:
        """ "dense_head: drifted, since backbone_2d feeds it and trains: batch_cls_preds 3.1e-02"."""
        moved = _figures(self.moved)
        if self.kind == "identical":
            count = f"{len(self.moved)} output{'' if len(self.moved) == 1 else 's'}"
            names = ", ".join([*self.moved][:4]) + (" and others" if len(self.moved) > 4 else "")
            return f"{self.module}: {count} identical to the start's, bit for bit ({names})"
        noise = f"; runs of the start differ by {_figures(self.noise)}" if _figures(self.noise) else ""
        if self.kind == "drift":
            feed = "feeds" if len(self.feeders) == 1 else "feed"
            why = f"since {', '.join(self.feeders)} {feed} it and trained"
            return f"{self.module}: drifted by {moved or 'nothing'} (relative L2), {why}{noise}"
        return f"{self.module}: differs from the start by {moved or 'nothing'} (relative L2){noise}"

    def to_plain(self) -> dict[str, Any]:
        """Plain data, for JSON; what is infinite becomes None."""
        figures = {name: value if math.isfinite(value) else None for name, value in self.moved.items()}
        return {"verdict": self.kind, "fed_by": list(self.feeders), "relative_difference": figures}


def _figures(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.1e}" for name, value in values.items() if value)


def prove(model: nn.Module, start: Mapping[str, Tensor], batch_dict: dict[str, Any]) -> list[Verdict]:
    """Compare what each module that is frozen whole writes now with what it wrote in the state ``start``.

    Args:
        model: as it is at the end; it is left as it is, to the bit, and so are all generators.
        start: tensors of the start by name; those that are not in it are the same at the start and now.
        batch_dict: one batch on the model's device; it is left as it is.
    """
    root = unwrap(model)
    inputs = live_inputs(root)
    with untouched_rng(), plain_arithmetic(), eval_mode(root), same_buffers(root):
        end = outputs_of(root, tuple(inputs), batch_dict)
        with exchanged(root, start):
            first, *others = (outputs_of(root, tuple(inputs), batch_dict) for _ in range(2))
            if any(
                not feeders and any(_moved(first[name], end[name]).values())
                for name, feeders in inputs.items()
            ):
                # atomic adds may agree by chance: no alarm before the start has had more chances to disagree
                others += [outputs_of(root, tuple(inputs), batch_dict) for _ in range(MORE)]
    return [
        Verdict(name, tuple(feeders), _moved(first[name], end[name]), _noise(name, first, others))
        for name, feeders in inputs.items()
    ]


def _noise(name: str, first: Outputs, others: Sequence[Outputs]) -> dict[str, float]:
    """The greatest difference of each output from that of the first run."""
    found = [_moved(first[name], other[name]) for other in others]
    return {output: max(run.get(output, 0.0) for run in found) for output in dict.fromkeys(chain(*found))}


def _moved(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, float]:
    names = dict.fromkeys([*before, *after])
    both = {name: name in before and name in after for name in names}
    return {n: relative_error(before[n], after[n]) if both[n] else math.inf for n in names}


@torch.no_grad()
def outputs_of(model: nn.Module, names: tuple[str, ...], batch_dict: dict[str, Any]) -> Outputs:
    """What the modules ``names`` write in one forward, on the CPU, as it was when each of them ended."""
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
        found.update(
            {path: tensor.detach().to("cpu", copy=True) for path, tensor in tensors_with_path(written)}
        )

    return note, keep


@contextmanager
def exchanged(model: nn.Module, start: Mapping[str, Tensor]) -> Iterator[None]:
    """The tensors of ``start`` in place of the model's own for a while; each stays the same object."""
    own = named_tensors(model)
    now = {name: own[name].detach().to("cpu", copy=True) for name in start}
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
    """Parameters and buffers (those that a state_dict leaves out, too), a shared one under its first name."""
    root = unwrap(model)
    return {**dict(root.named_parameters()), **dict(root.named_buffers())}


@contextmanager
def plain_arithmetic() -> Iterator[None]:
    """float32 as it is written: no autocast, no TF32, no autotuning; deterministic convolutions."""
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
