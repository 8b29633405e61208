"""Trace a forward: the calls of modules in order, and which call reads the output of which.

Every torch operator is dispatched through the trace, so code outside of modules counts as well. A tensor is
*live* if it depends on a trainable parameter, on the statistics of a norm layer that is not locked in eval
mode, or on active dropout. Kernels outside of torch's operators (spconv) are known by the inputs and outputs
of their modules.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
import torch.utils.checkpoint
from torch import Tensor, UntypedStorage, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.entries.paths import walk
from pcdet_freeze.freezing.state import is_fully_frozen
from pcdet_freeze.utils.devices import autocast_is_on
from pcdet_freeze.utils.tensors import storage_of, tensors_of


@dataclass(eq=False)
class Call:
    """One call of a module."""

    path: str
    module: nn.Module
    above: Call | None
    """the call that made this call"""
    reads_live: bool = False
    """whether an operator inside it read a live tensor"""
    cut_off: bool = False
    """whether it ran in a reentrant checkpoint without an input that requires grad"""
    source: Call | None = None
    """the call whose output is its only argument"""
    given: Tensor | None = None
    """its argument, kept for trainable layers, to find calls with the same one"""
    autocast: bool | None = None
    """of a trainable layer: whether autocast is on; None without a graph, or in a checkpoint"""
    one_tensor: bool = False
    """whether it maps one tensor to one tensor"""
    users: set[Call] = field(default_factory=set)
    """innermost calls whose operators read its output"""
    output: weakref.ref[UntypedStorage] | None = None
    """storage of its output, if that is one tensor"""

    @property
    def kept(self) -> bool:
        """Whether its output is still referenced."""
        return self.output is not None and self.output() is not None

    def inside(self, calls: Collection[Call]) -> bool:
        """Whether it is one of ``calls``, or inside one."""
        call: Call | None = self
        while call is not None and call not in calls:
            call = call.above
        return call is not None


@dataclass
class _Tag:
    """What is known of one storage."""

    storage: weakref.ref[UntypedStorage]
    live: bool = False
    producer: Call | None = None


class ModuleCallMode(TorchDispatchMode):
    """Dispatch mode that also hooks every module of ``model``.

    Subclasses get each call of a module in ``_enter`` and ``_leave``, and each operator in
    ``__torch_dispatch__``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        # walk() yields aliases too: reversed, so that the first path of a module stays
        self._modules = {id(module): (path, module) for path, module, _ in reversed(list(walk(model)))}
        self._hooks: list[Any] = []

    def __enter__(self) -> Any:
        for path, module in self._modules.values():
            enter = self._enter(path)
            self._hooks.append(module.register_forward_pre_hook(enter, with_kwargs=True, prepend=True))
            self._hooks.append(module.register_forward_hook(self._leave, always_call=True))
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _enter(self, path: str) -> Any:
        raise NotImplementedError(
            "subclasses of ModuleCallMode define _enter(path), which returns a pre-hook"
        )

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        raise NotImplementedError("subclasses of ModuleCallMode define _leave, a forward hook")


class Trace(ModuleCallMode):
    """Records the calls of a forward in ``calls``, in order. Gradients must be enabled.

    >>> with Trace(model) as trace:
    ...     model(batch)
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.calls: list[Call] = []
        self._stack: list[Call] = []
        self._tags: dict[int, _Tag] = {}

    def __enter__(self) -> Trace:
        for _, module in self._modules.values():
            if layer_types.is_norm(module) and not is_fully_frozen(module):
                for buffer in module._buffers.values():
                    if buffer is not None and buffer.is_floating_point():
                        self._tag(buffer, live=True)
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        tags = [tag for tensor in given if (tag := self._known(tensor)) is not None]
        live = any(tensor.requires_grad for tensor in given) or any(tag.live for tag in tags)
        producers = {tag.producer for tag in tags if tag.producer is not None}
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        if live:
            self._note_live()
            for tensor in made:
                self._tag(tensor, live=True)
        if producers and not only_views(given, made, func._schema.is_mutable):
            for producer in producers:
                producer.users.update(self._stack[-1:])
        return result

    def is_live(self, value: Any) -> bool:
        """Whether any tensor in ``value`` is live."""
        known = ((tensor, self._known(tensor)) for tensor in tensors_of(value))
        return any(tensor.requires_grad or (tag is not None and tag.live) for tensor, tag in known)

    def _note_live(self) -> None:
        for call in self._stack:
            call.reads_live = True

    def _enter(self, path: str) -> Any:
        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            above = self._stack[-1] if self._stack else None
            call = Call(path, module, above, cut_off=_is_cut_off())
            if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
                tag = self._known(args[0])
                call.source = None if tag is None else tag.producer
                if trains(module):
                    call.given, call.autocast = args[0], _autocast(args[0].device.type)
                call.one_tensor = True
            self.calls.append(call)
            self._stack.append(call)
            if not module._modules and self.is_live((args, kwargs)):
                self._note_live()

        return enter

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        call = self._stack.pop()
        call.one_tensor = call.one_tensor and isinstance(output, Tensor)
        made = list(tensors_of(output))
        own = any(tensor.requires_grad for tensor in made) and not isinstance(output, dict)
        random = layer_types.is_dropout(module) and module.training
        if own or random or (call.reads_live and not module._modules):
            call.reads_live = True
            self._note_live()
            for tensor in made:
                self._tag(tensor, live=True)
        if len(made) == 1 and not module._modules:
            self._tag(made[0], producer=call)
            storage = storage_of(made[0])
            call.output = None if storage is None else weakref.ref(storage)

    def _known(self, tensor: Tensor) -> _Tag | None:
        storage = storage_of(tensor)
        return None if storage is None else self._tags.get(id(storage))

    def _tag(self, tensor: Tensor, live: bool = False, producer: Call | None = None) -> None:
        storage = storage_of(tensor)
        if storage is None:
            return
        key = id(storage)
        tag = self._tags.get(key)
        if tag is None:
            tag = self._tags[key] = _Tag(weakref.ref(storage, lambda _: self._tags.pop(key, None)))
        tag.live = tag.live or live
        tag.producer = producer or tag.producer


def only_views(given: list[Tensor], made: list[Tensor], writes: bool) -> bool:
    """Whether an operator that got ``given`` and returned ``made`` returned views of its inputs alone."""
    memory = {id(storage_of(tensor)) for tensor in given}
    return bool(made) and not writes and all(id(storage_of(tensor)) in memory for tensor in made)


def trains(module: nn.Module) -> bool:
    """Whether ``module`` itself has a trainable parameter."""
    return any(p.requires_grad for p in module._parameters.values() if p is not None)


def _autocast(device: str) -> bool | None:
    """Whether autocast is on; None without a graph, or inside a checkpoint, which runs the caller again."""
    if not torch.is_grad_enabled() or next(_checkpoint_frames(), None) is not None:
        return None
    return autocast_is_on(device)


def _is_cut_off() -> bool:
    """Whether the caller runs inside a reentrant checkpoint whose inputs do not require grad.

    Such a checkpoint runs under no_grad, and recomputes with a graph only if one of its inputs requires grad.
    """
    if torch.is_grad_enabled():
        return False
    inputs = (
        frame.f_locals.get("args", ()) for frame in _checkpoint_frames() if frame.f_code.co_name == "forward"
    )
    innermost = next(inputs, None)
    return innermost is not None and not any(tensor.requires_grad for tensor in tensors_of(innermost))


def _checkpoint_frames() -> Iterator[FrameType]:
    """Frames of torch.utils.checkpoint on the stack, innermost first.

    The stack is inspected since torch has no hook for checkpoints: CheckpointFunction.apply passes through no
    torch function mode, and under no_grad nothing else tells a reentrant checkpoint from a no_grad block.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename == torch.utils.checkpoint.__file__:
            yield frame
        frame = frame.f_back
