"""torch.compile for parts of the prefix, on copies with the folded weights in them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.freezing.prefix.fold_bn import Fold


class Compiled:
    """A frozen module that takes one tensor and gives one, compiled.

    What is compiled is a copy in which norm layers are folded away; it is made anew when a tensor of the
    module has been written to.

    Args:
        module: the frozen module itself.
        folds: (path of the layer, path of the norm, both below ``module``; the fold).
    """

    def __init__(self, module: nn.Module, folds: Sequence[tuple[str, str, Fold]]) -> None:
        self.module, self.folds = module, tuple(folds)
        self.plain_calls = 0
        """calls in which the code ran as it is written: torch.compile gave up on it, or was told to"""
        self._made_from: tuple[Any, ...] = ()
        self._run: Any = None

    def renew(self) -> None:
        """Copy and compile, unless that is done. Call it while the module's own forward is in place."""
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
        self._run = torch.compile(self._entry(twin))

    def __call__(self, value: Tensor) -> Any:
        return self._run(value)

    def _entry(self, module: nn.Module) -> Any:
        """A function that calls ``module``, with a code object of its own: torch.compile counts versions by
        that, and gives up on one that has many."""

        def call(value: Tensor) -> Any:
            if not torch.compiler.is_compiling():  # what is compiled leaves this out
                self.plain_calls += 1
            return module(value)

        return FunctionType(call.__code__.replace(), call.__globals__, "call", None, call.__closure__)
