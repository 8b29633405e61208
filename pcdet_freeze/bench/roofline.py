"""What a training step would take on a GPU at best: FLOPs and bytes of its operators, and the card's limits.

Nothing is measured: each operator takes the larger of FLOPs / peak and bytes / bandwidth, where bytes are
those of the tensors that it reads and writes once (Williams et al., CACM 52(4), 2009). Kernels that are not
fused run one after another. A real step takes longer; a ratio of measured to expected says by how much.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pcdet_freeze.bench.exact_figures import uncompiled
from pcdet_freeze.bench.variants import Contender
from pcdet_freeze.utils.devices import forms_of_any_device

FRAMES = 16
"""batch that is expected on the card"""
LAUNCH = 4e-6
"""seconds in which the host queues a kernel: below, the host is the limit"""


@dataclass(frozen=True)
class Card:
    """Limits of a GPU by its data sheet: dense FLOP/s and bytes/s."""

    name: str
    bandwidth: float
    peak: Mapping[str, float]
    """float32 (matrix products), tf32 (convolutions, as torch sets it), bfloat16"""


PEAK = {"float32": 67e12, "tf32": 494e12, "bfloat16": 989e12}
CARDS = (Card("H100 SXM", 3.35e12, PEAK), Card("H200 SXM", 4.8e12, PEAK))


@dataclass(frozen=True)
class Operator:
    """One call of an operator."""

    flops: int
    bytes: int
    kind: str
    """key of ``Card.peak``"""

    def seconds(self, card: Card) -> float:
        return max(self.flops / card.peak[self.kind], self.bytes / card.bandwidth)


class Operators(TorchDispatchMode):
    """Lists the operators that run, without views and allocations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[Operator] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name
        if not getattr(func, "is_view", False) and not name.startswith(("aten::empty", "aten::new_empty")):
            inputs, outputs = _tensors((args, kwargs)), _tensors(result)
            flops = 0
            if func.overloadpacket in flop_registry:
                flops = flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
            kind = "bfloat16" if any(t.dtype == torch.bfloat16 for t in inputs) else "float32"
            if kind == "float32" and "conv" in name:
                kind = "tf32"
            size = sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))
            self.found.append(Operator(int(flops), size, kind))
        return result


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Bytes that an operator touches; an expanded tensor has fewer than elements."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def roofline(
    contenders_of: Callable[[int], Iterable[Contender]], frames: Sequence[int] = (1, 2)
) -> list[dict[str, Any]]:
    """Return one row for each variant: figures of a frame, and what is expected at a batch of 16.

    FLOPs, bytes and seconds are counted at two batch sizes, and extrapolated. Operators that exist for a CPU
    alone are replaced by those of other devices.

    Args:
        contenders_of: number of frames -> the variants.
    """
    few, many = (_counted(contenders_of(number)) for number in frames)
    return [_row(name, frames, few[name], many[name]) for name in few]


def _counted(contenders: Iterable[Contender]) -> dict[str, list[Operator]]:
    found = {}
    for contender in contenders:
        with forms_of_any_device(), uncompiled():
            contender.step()  # creates the optimizer state
            with Operators() as operators:
                contender.step()
        found[contender.name] = operators.found
    return found


def _row(name: str, frames: Sequence[int], few: list[Operator], many: list[Operator]) -> dict[str, Any]:
    def at(figure: Callable[[list[Operator]], float], number: int = FRAMES) -> float:
        a, b = figure(few), figure(many)
        return a + (b - a) * (number - frames[0]) / (frames[1] - frames[0])

    def flops(operators: list[Operator]) -> float:
        return sum(operator.flops for operator in operators)

    def size(operators: list[Operator]) -> float:
        return sum(operator.bytes for operator in operators)

    row: dict[str, Any] = {
        "variant": name,
        "flops": at(flops) / FRAMES,
        "bytes": at(size) / FRAMES,
        "kernels": len(many),
    }
    for card in CARDS:
        seconds = at(lambda operators, card=card: sum(each.seconds(card) for each in operators))  # type: ignore[misc]
        row[card.name] = {
            "seconds": seconds,
            "frames_per_second": FRAMES / max(seconds, len(many) * LAUNCH),
            "limit": "host" if seconds < len(many) * LAUNCH else "card",
        }
    return row
