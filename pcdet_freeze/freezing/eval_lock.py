"""Lock a layer in eval mode, and unlock it again.

The layer stays the same object. Only its ``__class__`` becomes a subclass of its own class whose ``training``
is always False, as ``torch.nn.utils.parametrize`` changes an instance in place. ``train()``,
``m.training = True`` and a parent's ``train()`` only set the mode that the layer takes when it is unlocked.
``isinstance``, ``repr``, parameters and ``state_dict`` keys stay as they were; a forward costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

REQUESTED_MODE = "_pcdet_freeze_requested_mode"
"""Instance attribute: the mode that a locked layer was last set to."""
_MARK = "_pcdet_freeze_locked"


def _get_training(self: nn.Module) -> bool:
    """False while locked. A subclass made after locking may still use this later: then the real flag."""
    return False if REQUESTED_MODE in self.__dict__ else bool(self.__dict__["training"])


def _set_training(self: nn.Module, mode: bool) -> None:
    self.__dict__[REQUESTED_MODE if REQUESTED_MODE in self.__dict__ else "training"] = mode


def _keep_running_stats(self: Any) -> None:
    """While locked, ``torch.optim.swa_utils.update_bn`` must not reset the statistics."""
    if not is_locked(self):
        base_class(self).reset_running_stats(self)  # type: ignore[attr-defined]


def _reduce(self: nn.Module, protocol: Any) -> Any:
    """Pickle and copy as the layer's own class would, and lock the result."""
    base = base_class(self)
    reduced = base.__reduce_ex__(self, protocol)  # type: ignore[call-arg, arg-type]
    if isinstance(reduced, str):
        return reduced
    build, arguments, *rest = reduced
    plain = tuple(base if argument is type(self) else argument for argument in arguments)
    return (_rebuild, (base, build, plain), *rest)


def _rebuild(base: type, build: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Unpickle a locked layer: build it as its own class would, then set the locked class."""
    layer = build(*arguments)
    layer.__class__ = locked_class(base)
    return layer


def base_class(module: object) -> type:
    """The class that ``module`` has, or would have if it were not locked."""
    for cls in type(module).__mro__:
        if _MARK in cls.__dict__:
            return cls.__bases__[0]
    return type(module)


def locked_class(base: type) -> type:
    """The locked subclass of ``base``: one for each class, found in Python's own list of subclasses."""
    subclasses: list[type] = type.__subclasses__(base)
    for known in subclasses:
        if _MARK in known.__dict__:
            return known
    body: dict[str, Any] = {
        _MARK: True,
        "__slots__": (),
        "__module__": base.__module__,
        "__qualname__": base.__qualname__,
        "__doc__": base.__doc__,
        "__reduce_ex__": _reduce,
        "__jit_unused_properties__": ["training", *getattr(base, "__jit_unused_properties__", [])],
        "training": property(_get_training, _set_training),
    }
    if hasattr(base, "reset_running_stats"):
        body["reset_running_stats"] = _keep_running_stats
    # made below nn.Module first: an __init_subclass__ of the layer's class (a registry, say) must not see it
    made = type(base)(base.__name__, (nn.Module,), dict(body))
    try:
        made.__bases__ = (base,)
    except TypeError:  # a class with __slots__ of its own has another memory layout
        made = type(base)(base.__name__, (base,), dict(body))
    return made


def is_locked(module: nn.Module) -> bool:
    """Whether ``module`` is locked in eval mode."""
    return REQUESTED_MODE in module.__dict__ and hasattr(type(module), _MARK)


def requested_mode(module: nn.Module) -> bool:
    """The training flag that ``module`` would have if it were not locked."""
    return bool(module.__dict__.get(REQUESTED_MODE, module.__dict__.get("training", module.training)))


def lock(module: nn.Module) -> None:
    """Lock ``module`` in eval mode. Does nothing where it is locked already."""
    if not is_locked(module):
        module.__dict__[REQUESTED_MODE] = bool(module.training)
        module.__dict__["training"] = False
    if not hasattr(type(module), _MARK):
        module.__class__ = locked_class(type(module))


def unlock(module: nn.Module, mode: bool) -> None:
    """Undo :func:`lock`; ``module`` takes ``mode`` as its training flag."""
    if _MARK in type(module).__dict__:
        module.__class__ = base_class(module)
    module.__dict__.pop(REQUESTED_MODE, None)
    module.__dict__["training"] = mode


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for ``module`` and all modules in it; each gets its training flag back afterwards."""
    training = [part for part in module.modules() if requested_mode(part)]
    try:
        module.eval()
        yield
    finally:
        for part in training:
            part.training = True
