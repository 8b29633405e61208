"""torch.compile for modules of the prefix, on copies that hold the folded weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.prefix.fold_bn import Fold


class Compiled:
    """A compiled copy of a frozen module that maps one tensor to one tensor.

    The norm layers of the copy are folded. It is compiled again when a tensor of the module was written to.

    Args:
        module: the frozen module.
        folds: (path of the layer, path of the norm, fold); paths are relative to ``module``.
        graphs: capture CUDA graphs, whose outputs are overwritten in the next step.
    """

    def __init__(
        self, module: nn.Module, folds: Sequence[tuple[str, str, Fold]], graphs: bool = False
    ) -> None:
        self.module, self.folds, self.graphs = module, tuple(folds), graphs
        self.plain_calls = 0
        """calls that ran eagerly: torch.compile fell back, or was disabled"""
        self._made_from: tuple[Any, ...] = ()
        self._run: Any = None

    def renew(self) -> None:
        """Copy and compile the module if it changed. Call this while its own forward is in place."""
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        state = [*self.module.parameters(), *self.module.buffers()]
        made_from = tuple((id(tensor), tensor._version, tensor.data_ptr()) for tensor in state)
        if made_from == self._made_from:
            return
        self._made_from, twin = made_from, copy.deepcopy(self.module)
        for layer_path, norm_path, fold in self.folds:
            layer: Any = twin.get_submodule(layer_path)
            weight, bias = fold.weights()
            layer.weight, layer.bias = nn.Parameter(weight, False), nn.Parameter(bias, False)
            parent, _, name = norm_path.rpartition(".")
            twin.get_submodule(parent).add_module(name, nn.Identity())
        self._run = torch.compile(self._entry(twin), mode="reduce-overhead" if self.graphs else None)

    def __call__(self, value: Tensor) -> Any:
        return self._run(value)

    def _entry(self, module: nn.Module) -> Any:
        """A function that calls ``module``, with a code object of its own.

        torch.compile counts recompilations by code object, and falls back to eager after a few.
        """

        def call(value: Tensor) -> Any:
            if not torch.compiler.is_compiling():  # false in compiled code, which leaves this out
                self.plain_calls += 1
            return module(value)

        return FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
