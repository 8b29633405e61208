"""What trains though no remaining loss reaches it (H11), found in the graph of the first training forward.

The graph is walked from the loss after the forward and before the backward: at that place every rank still
stands at the same point, so all can agree and stop together. After the backward it would be too late: where
one rank's loss reaches a parameter and another's does not, DistributedDataParallel waits in that backward.

A reached parameter has a gradient, be it zero (a head without positives); that is no fault here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.checks.loss_reachability import outermost_unreached
from pcdet_freeze.freezing.eval_lock import is_locked
from pcdet_freeze.freezing.module_graph import stages, training_steps
from pcdet_freeze.freezing.paths import walk
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.tensors import leaves

STATISTICS = "running statistics"
_OPAQUE = "CheckpointFunction"
"""the node of reentrant gradient checkpointing: what is behind it shows in the backward only"""


class LossGraph:
    """Watches the live norm layers of one training forward, then says what its loss does not reach."""

    def __init__(self, model: nn.Module) -> None:
        self.model = unwrap(model)
        self.opaque = False
        self._nodes: dict[str, list[Any]] = {}
        self._hooks: list[Any] = []

    def begin(self) -> None:
        """Watch the norm layers that are live."""
        for path, module, _ in walk(self.model):
            if layer_types.is_norm(module) and not is_locked(module):
                self._hooks.append(module.register_forward_hook(self._keeper(path)))

    def end(self) -> None:
        """Take all hooks off again."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def lost(self, loss: Tensor) -> list[str]:
        """Outermost live modules (or single parameters, or a norm's statistics) that ``loss`` does not reach.

        Empty, too, where the graph hides a part of itself (``opaque``): then the backward has to tell.
        """
        nodes, leaf_ids, self.opaque = walk_graph(loss)
        found = {n: id(p) in leaf_ids for n, p in self.model.named_parameters() if p.requires_grad}
        for path, seen in self._nodes.items():
            hit = any(id(item) in leaf_ids if isinstance(item, Tensor) else item in nodes for item in seen)
            found[f"{path}.{STATISTICS}" if path else STATISTICS] = hit
        self._nodes = {}
        return [] if self.opaque else outermost_unreached(self.model, found)

    def _keeper(self, path: str) -> Callable[[nn.Module, Any, Any], Any]:
        """A forward hook that remembers where in the graph a norm layer's output is made."""

        def keep(module: nn.Module, args: Any, output: Any) -> Any:
            if not module.training:
                return output
            seen = self._nodes.setdefault(path, [])
            if not isinstance(output, Tensor) or not torch.is_grad_enabled():
                return output
            if output.grad_fn is not None:
                seen.append(output.grad_fn)
                return output
            # nothing in it or in front of it trains: a leaf shows whether the loss uses its output
            leaf = output.detach().requires_grad_()
            seen.append(leaf)
            return leaf * 1  # what follows may work in place, which a leaf forbids

        return keep


def without_gradient(model: nn.Module) -> list[str]:
    """Outermost live modules, or single parameters, that a backward left without a gradient."""
    named = unwrap(model).named_parameters()
    return outermost_unreached(model, {name: p.grad is not None for name, p in named if p.requires_grad})


def walk_graph(loss: Tensor) -> tuple[set[Any], set[int], bool]:
    """(nodes, ids of the leaf tensors, whether a node hides more) of the graph that made ``loss``."""
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
    """Heads whose loss may be a constant for this batch, since their labels in it say nothing.

    The labels are the declared ``reads_train``. Zero rows pad boxes, and 255 everywhere is a map without
    labels: so a label whose numbers are all the same says nothing.
    """
    steps = training_steps(model)
    return [
        stage.name
        for stage in stages(model)
        if stage.has_loss and steps[stage.name].loss and _says_nothing(batch_dict, stage.reads_train)
    ]


def _says_nothing(batch_dict: Mapping[str, Any], keys: frozenset[str]) -> bool:
    tensors = [tensor for key in sorted(keys) for _, tensor in leaves(batch_dict.get(key))]
    return bool(keys) and all(t.numel() == 0 or bool((t == t.flatten()[0]).all()) for t in tensors)


def unreached_message(part: str, model: nn.Module) -> str:
    """What is wrong with one of :meth:`LossGraph.lost`, and what to write."""
    holder, _, own = part.rpartition(".")
    if own == STATISTICS:
        return f"{holder}: its running statistics would drift: add {holder!r}"
    if part in dict(unwrap(model).named_parameters()):
        where = f"add {holder!r}" if holder else "let a loss use it"
        return f"{part}, a parameter: {where}, or set its requires_grad to False"
    return f"{part}: add {part!r}"
