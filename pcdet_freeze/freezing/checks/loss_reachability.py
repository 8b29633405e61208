"""Which loss reaches what, found by one forward and one backward pass a head on a copy of the model."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.eval_lock import is_locked
from pcdet_freeze.freezing.paths import children, join, walk
from pcdet_freeze.utils.distributed import unwrap


@dataclass(frozen=True)
class Reach:
    """Which heads' losses reach each trainable parameter and each live norm layer."""

    heads: tuple[str, ...] = ()
    """heads that gave a loss"""
    found: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """parameter name, or path of a norm layer -> heads"""

    def inside(self, path: str) -> dict[str, tuple[str, ...]]:
        """What of ``found`` lies in the module at ``path``."""
        return {name: heads for name, heads in self.found.items() if name.startswith(f"{path}.") or not path}

    def lost(self, model: nn.Module) -> list[str]:
        """Outermost modules (or parameters) that train, or keep statistics, though no loss reaches them."""
        return outermost_unreached(model, {name: bool(heads) for name, heads in self.found.items()})


def trace(model: nn.Module, batch_dict: dict[str, Any]) -> Reach:
    """Run ``batch_dict`` through a copy of ``model`` in train mode, frozen as it is; nothing is changed.

    A parameter is reached where the loss depends on it, even if the gradient of this batch is zero.
    """
    twin = copy.deepcopy(unwrap(model)).train()
    norms = {path: m for path, m, _ in walk(twin) if layer_types.is_norm(m) and not is_locked(m)}
    tensors: dict[str, list[Tensor]] = {n: [p] for n, p in twin.named_parameters() if p.requires_grad}
    tensors |= {f"{path}.": [] for path in norms}
    hooks = [m.register_forward_hook(_keeper(tensors[f"{path}."])) for path, m in norms.items()]
    losses = _losses(twin, dict(batch_dict))
    for hook in hooks:
        hook.remove()
    found: dict[str, tuple[str, ...]] = {}
    reached = {head: _reached(loss, tensors) for head, loss in losses.items()}
    for name in tensors:
        key = f"{name}running statistics" if name.endswith(".") else name
        found[key] = tuple(head for head, names in reached.items() if name in names)
    return Reach(tuple(losses), found)


def _losses(model: nn.Module, batch_dict: dict[str, Any]) -> dict[str, Tensor]:
    """Weighed loss of each head, by its name; of a detector that tells no heads, the one that it returns."""
    result = model(batch_dict)
    by_head: Callable[[], Any] | None = getattr(model, "get_head_losses", None)
    if by_head is None:
        return {"loss": result[0]["loss"]}
    weigh: Callable[[Any], Any] | None = getattr(model, "weigh_losses", None)
    return by_head()[0] if weigh is None else weigh(by_head()[0])


def _keeper(kept: list[Tensor]) -> Callable[[nn.Module, Any, Any], Any]:
    """A forward hook that keeps a norm layer's output as something that a gradient can be asked for."""

    def keep(module: nn.Module, args: Any, output: Any) -> Any:
        if not torch.is_tensor(output) or not torch.is_grad_enabled():
            return output
        if output.requires_grad:
            kept.append(output)
            return output
        leaf = output.detach().requires_grad_()
        kept.append(leaf)
        return leaf * 1  # what follows may work in place, which a leaf forbids

    return keep


def _reached(loss: Tensor, tensors: dict[str, list[Tensor]]) -> set[str]:
    pairs = [(name, tensor) for name, several in tensors.items() for tensor in several]
    if not loss.requires_grad or not pairs:
        return set()
    grads = torch.autograd.grad(loss, [tensor for _, tensor in pairs], retain_graph=True, allow_unused=True)
    return {name for (name, _), grad in zip(pairs, grads, strict=True) if grad is not None}


def outermost_unreached(model: nn.Module, reached: dict[str, bool]) -> list[str]:
    """Outermost modules in which nothing of ``reached`` is reached; single names where the rest of theirs is.

    Args:
        reached: name of a tensor, or ``<norm layer>.running statistics`` -> whether a loss reaches it.
    """
    return _lost("", unwrap(model), reached)


def _lost(path: str, module: nn.Module, reached: dict[str, bool]) -> list[str]:
    mine = {name: hit for name, hit in reached.items() if not path or name.startswith(f"{path}.")}
    if not mine or all(mine.values()):
        return []
    if path and not any(mine.values()):
        return [path]
    return [*_own_lost(path, module, mine), *_lost_below(path, module, mine)]


def _own_lost(path: str, module: nn.Module, mine: dict[str, bool]) -> Iterator[str]:
    for name in (*module._parameters, *module._buffers, "running statistics"):
        if mine.get(join(path, name)) is False:
            yield join(path, name)


def _lost_below(path: str, module: nn.Module, mine: dict[str, bool]) -> Iterator[str]:
    for child_path, child in children(path, module):
        yield from _lost(child_path, child, mine)
