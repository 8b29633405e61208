"""Loss reachability (H11): which trainable parameters and norm layers in train mode the losses depend on.

:func:`trace_losses` answers it per head, with a forward and a backward on a copy of the model (``explain``);
:class:`ReachabilityCheck` answers it for the loss of one training forward, from the autograd graph.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.data_flow.module_graph import stages, training_steps
from pcdet_freeze.freezing.entries.paths import children, join, walk
from pcdet_freeze.freezing.eval_lock import is_locked
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.tensors import tensors_with_path


@dataclass(frozen=True)
class Reachability:
    """Which heads' losses depend on each trainable parameter and each norm layer in train mode."""

    heads: tuple[str, ...] = ()
    """heads that gave a loss"""
    found: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """parameter name, or ``<norm layer>.running statistics`` -> heads"""

    def inside(self, path: str) -> dict[str, tuple[str, ...]]:
        """The items of ``found`` in the module at ``path``."""
        return {name: heads for name, heads in self.found.items() if name.startswith(f"{path}.") or not path}

    def unreached(self, model: nn.Module) -> list[str]:
        """Outermost trainable modules, or single parameters, that no loss depends on."""
        return outermost_unreached(model, {name: bool(heads) for name, heads in self.found.items()})


def trace_losses(model: nn.Module, batch_dict: dict[str, Any]) -> Reachability:
    """Run ``batch_dict`` through a copy of ``model`` in train mode, frozen as it is; nothing is changed.

    A parameter is reached if the loss depends on it, even if its gradient for this batch is zero.
    """
    twin = copy.deepcopy(unwrap(model)).train()
    norms = {path: m for path, m, _ in walk(twin) if layer_types.is_norm(m) and not is_locked(m)}
    tensors: dict[str, list[Tensor]] = {n: [p] for n, p in twin.named_parameters() if p.requires_grad}
    tensors |= {f"{path}.": [] for path in norms}
    hooks = [m.register_forward_hook(_output_recorder(tensors[f"{path}."])) for path, m in norms.items()]
    losses = _losses(twin, dict(batch_dict))
    for hook in hooks:
        hook.remove()
    found: dict[str, tuple[str, ...]] = {}
    reached = {head: _reached(loss, tensors) for head, loss in losses.items()}
    for name in tensors:
        key = f"{name}running statistics" if name.endswith(".") else name
        found[key] = tuple(head for head, names in reached.items() if name in names)
    return Reachability(tuple(losses), found)


def _losses(model: nn.Module, batch_dict: dict[str, Any]) -> dict[str, Tensor]:
    """Weighted loss of each head by name; the returned loss of a detector without ``get_head_losses``."""
    result = model(batch_dict)
    by_head: Callable[[], Any] | None = getattr(model, "get_head_losses", None)
    if by_head is None:
        return {"loss": result[0]["loss"]}
    weigh: Callable[[Any], Any] | None = getattr(model, "weigh_losses", None)
    return by_head()[0] if weigh is None else weigh(by_head()[0])


def _output_recorder(kept: list[Tensor]) -> Callable[[nn.Module, Any, Any], Any]:
    """Forward hook that appends a norm layer's output, as a tensor with a gradient, to ``kept``."""

    def record(module: nn.Module, args: Any, output: Any) -> Any:
        if not torch.is_tensor(output) or not torch.is_grad_enabled():
            return output
        if output.requires_grad:
            kept.append(output)
            return output
        leaf = output.detach().requires_grad_()
        kept.append(leaf)
        return leaf * 1  # in-place operations are not allowed on a leaf

    return record


def _reached(loss: Tensor, tensors: dict[str, list[Tensor]]) -> set[str]:
    pairs = [(name, tensor) for name, several in tensors.items() for tensor in several]
    if not loss.requires_grad or not pairs:
        return set()
    grads = torch.autograd.grad(loss, [tensor for _, tensor in pairs], retain_graph=True, allow_unused=True)
    return {name for (name, _), grad in zip(pairs, grads, strict=True) if grad is not None}


def outermost_unreached(model: nn.Module, reached: dict[str, bool]) -> list[str]:
    """Outermost modules in which nothing is reached; single names in modules that are reached in part.

    Args:
        reached: parameter name, or ``<norm layer>.running statistics`` -> whether a loss depends on it.
    """
    return _unreached("", unwrap(model), reached)


def _unreached(path: str, module: nn.Module, reached: dict[str, bool]) -> list[str]:
    inside = {name: hit for name, hit in reached.items() if not path or name.startswith(f"{path}.")}
    if not inside or all(inside.values()):
        return []
    if path and not any(inside.values()):
        return [path]
    return [*_own_unreached(path, module, inside), *_unreached_below(path, module, inside)]


def _own_unreached(path: str, module: nn.Module, inside: dict[str, bool]) -> Iterator[str]:
    for name in (*module._parameters, *module._buffers, "running statistics"):
        if inside.get(join(path, name)) is False:
            yield join(path, name)


def _unreached_below(path: str, module: nn.Module, inside: dict[str, bool]) -> Iterator[str]:
    for child_path, child in children(path, module):
        yield from _unreached(child_path, child, inside)


STATISTICS = "running statistics"
_OPAQUE = "CheckpointFunction"
"""node of reentrant gradient checkpointing, which hides the graph behind it until the backward"""


class ReachabilityCheck:
    """Checks one training forward: call ``begin`` before it, ``end`` after it, then ``unreached(loss)``."""

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self.opaque = False
        """whether the graph of the loss hides a part of itself; set by :meth:`unreached`"""
        self._nodes: dict[str, list[Any]] = {}
        self._hooks: list[Any] = []

    def begin(self) -> None:
        """Hook the norm layers in train mode."""
        for path, module, _ in walk(self.model):
            if layer_types.is_norm(module) and not is_locked(module):
                self._hooks.append(module.register_forward_hook(PicklableHook(self._output_recorder(path))))

    def end(self) -> None:
        """Remove all hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def unreached(self, loss: Tensor) -> list[str]:
        """Outermost trainable modules, parameters or running statistics that ``loss`` does not depend on.

        Empty also where the graph is ``opaque``: call :func:`without_gradient` after the backward then.
        """
        nodes, leaf_ids, self.opaque = walk_graph(loss)
        found = {n: id(p) in leaf_ids for n, p in self.model.named_parameters() if p.requires_grad}
        for path, seen in self._nodes.items():
            hit = any(id(item) in leaf_ids if isinstance(item, Tensor) else item in nodes for item in seen)
            found[f"{path}.{STATISTICS}" if path else STATISTICS] = hit
        self._nodes = {}
        return [] if self.opaque else outermost_unreached(self.model, found)

    def _output_recorder(self, path: str) -> Callable[[nn.Module, Any, Any], Any]:
        """Forward hook that records the graph node of a norm layer's output."""

        def record(module: nn.Module, args: Any, output: Any) -> Any:
            if not module.training:
                return output
            seen = self._nodes.setdefault(path, [])
            if not isinstance(output, Tensor) or not torch.is_grad_enabled():
                return output
            if output.grad_fn is not None:
                seen.append(output.grad_fn)
                return output
            # it has no graph: a leaf shows whether the loss depends on its output
            leaf = output.detach().requires_grad_()
            seen.append(leaf)
            return leaf * 1  # in-place operations are not allowed on a leaf

        return record


def without_gradient(model: nn.Module) -> list[str]:
    """Outermost trainable modules, or single parameters, without a gradient after a backward."""
    named = unwrap(model).named_parameters()
    return outermost_unreached(model, {name: p.grad is not None for name, p in named if p.requires_grad})


def walk_graph(loss: Tensor) -> tuple[set[Any], set[int], bool]:
    """(nodes, ids of the leaf tensors, whether a node hides a part) of the autograd graph of ``loss``."""
    nodes: set[Any] = set()
    found: set[int] = set()
    opaque = False
    waiting = [loss.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in nodes:
            continue
        nodes.add(node)
        opaque = opaque or node.name().startswith(_OPAQUE)
        leaf = getattr(node, "variable", None)
        if leaf is not None:
            found.add(id(leaf))
        waiting += [following for following, _ in node.next_functions]
    return nodes, found, opaque


def unlabelled_heads(model: nn.Module, batch_dict: Mapping[str, Any]) -> list[str]:
    """Heads whose loss may be constant for this batch, because the batch has no labels for them.

    The labels are the keys in ``reads_train``. Boxes are padded with zero rows, and 255 everywhere is a map
    without labels: a label tensor whose elements are all equal counts as absent.
    """
    steps = training_steps(model)
    return [
        stage.name
        for stage in stages(model)
        if stage.has_loss and steps[stage.name].loss and _is_unlabelled(batch_dict, stage.reads_train)
    ]


def _is_unlabelled(batch_dict: Mapping[str, Any], keys: frozenset[str]) -> bool:
    tensors = [tensor for key in sorted(keys) for _, tensor in tensors_with_path(batch_dict.get(key))]
    return bool(keys) and all(t.numel() == 0 or bool((t == t.flatten()[0]).all()) for t in tensors)


def unreached_message(part: str, model: nn.Module) -> str:
    """One line for an item of :meth:`ReachabilityCheck.unreached`: the item and the entry to add."""
    holder, _, own = part.rpartition(".")
    if own == STATISTICS:
        return f"{holder}: its running statistics would drift: add {holder!r}"
    if part in dict(unwrap(model).named_parameters()):
        where = f"add {holder!r}" if holder else "let a loss use it"
        return f"{part} (a parameter): {where}, or set its requires_grad to False"
    return f"{part}: add {part!r}"
