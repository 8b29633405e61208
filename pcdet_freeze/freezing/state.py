"""What freezing writes down, on the model itself, so that it survives copying and replaced children.

* A :class:`ModuleState` lies on every frozen module: who owns it, and what it was before.
* A :class:`FreezeState` lies on the module that was given to ``freeze``: its freeze requests, and the states
  by path, for a child that is replaced by another (``convert_sync_batchnorm``).

Both are plain instance attributes: no parameter, no buffer, nothing in the ``state_dict``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from torch import nn

from pcdet_freeze.freezing.module_set import ModuleSet
from pcdet_freeze.freezing.paths import unwrap
from pcdet_freeze.freezing.plan import FreezePlan

RECORD = "_pcdet_freeze_record"
ROOT = "_pcdet_freeze_root"


class Owner(NamedTuple):
    """One freeze's part in a module."""

    token: str
    params: tuple[str, ...]
    """The module's own parameters that it froze."""
    mode: bool
    """It holds the module in eval mode (of an RNN: its dropout at 0)."""
    everything: bool = True
    """It names the module, with its parameters: no FREEZE.PARAMETERS: False, not a tied tensor only."""


@dataclass(frozen=True)
class ModuleState:
    """Owners of one module, and its state before the first of them came."""

    owners: tuple[Owner, ...] = ()
    grads: tuple[tuple[str, bool], ...] = ()
    """(name of a parameter that some owner froze, its ``requires_grad`` before)."""
    training: bool | None = None
    """Training flag before; None while the mode is not held."""
    apart: bool = False
    """Whether that flag differed from the parent's."""
    dropout: float | None = None
    """Dropout of an RNN before."""
    released: tuple[str, ...] = ()
    """Freezes whose root has not heard yet that this module was let go."""

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of all owners."""
        return tuple(owner.token for owner in self.owners)

    @cached_property
    def params(self) -> frozenset[str]:
        """Parameters that any owner froze."""
        return frozenset(name for owner in self.owners for name in owner.params)

    @cached_property
    def mode(self) -> bool:
        """Whether any owner holds the mode."""
        return any(owner.mode for owner in self.owners)

    def without(self, tokens: frozenset[str] | None) -> ModuleState:
        """This record after the freezes ``tokens`` (None: all) let go."""
        kept = tuple(owner for owner in self.owners if tokens is not None and owner.token not in tokens)
        return replace(self, owners=kept)


@dataclass(frozen=True)
class FreezeRequest:
    """One freeze, as its root remembers it."""

    token: str
    plan: FreezePlan
    module_set: ModuleSet
    """The frozen subtrees, by path."""
    eval_set: ModuleSet = field(default_factory=ModuleSet)
    """Subtrees held in eval as a whole (FREEZE.EVAL)."""
    tied: tuple[tuple[str, str], ...] = ()
    """(module path, parameter) outside the cover that share memory with a frozen tensor."""
    users: tuple[str, ...] = ()
    """Modules outside the cover that own a frozen buffer too."""


@dataclass
class FreezeState:
    """The claims on one root, and the records of its modules by path."""

    requests: dict[str, FreezeRequest] = field(default_factory=dict)
    saved_states: dict[str, ModuleState] = field(default_factory=dict)


def get_module_state(module: nn.Module) -> ModuleState | None:
    """The record on ``module``, or None."""
    module_state = module.__dict__.get(RECORD)
    return module_state if isinstance(module_state, ModuleState) else None


def set_module_state(module: nn.Module, module_state: ModuleState | None) -> None:
    """Lay ``record`` on ``module``, or take its record away. Nobody else writes records."""
    global _stamp
    _stamp = object()
    if module_state is not None:
        module.__dict__[RECORD] = module_state
    else:
        module.__dict__.pop(RECORD, None)


_stamp = object()


def freeze_stamp() -> object:
    """An object that is another one after any change of what is frozen, in any model of this process."""
    return _stamp


def get_freeze_state(root: nn.Module) -> FreezeState | None:
    """The claims made at ``root``, or None."""
    state = root.__dict__.get(ROOT)
    return state if isinstance(state, FreezeState) else None


def is_frozen(module: nn.Module) -> bool:
    """Whether ``module`` and every module in it is held by some freeze. Wrappers are seen through."""
    return all(_is_frozen_here(part) for part in unwrap(module).modules())


def is_fully_frozen(module: nn.Module) -> bool:
    """Whether ``module`` is named whole, its parameters too: its output depends on its input alone."""
    return all(_is_frozen_with_parameters(part) for part in unwrap(module).modules())


def _is_frozen_with_parameters(module: nn.Module) -> bool:
    module_state = get_module_state(module)
    return module_state is not None and any(owner.everything for owner in module_state.owners)


def _is_frozen_here(module: nn.Module) -> bool:
    module_state = get_module_state(module)
    return module_state is not None and bool(module_state.owners)
