"""The state of freezing, kept on the model itself, so that it survives copying and replaced children.

* Every frozen module has a :class:`ModuleState`: the freezes that own it, and its state before them.
* The module given to ``freeze`` has a :class:`FreezeState`: its freeze requests, and the module states by
  path, for a child that is replaced by another (``convert_sync_batchnorm``).

Both are plain instance attributes: no parameter, no buffer, nothing in the ``state_dict``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from torch import nn

from pcdet_freeze.freezing.entries.module_set import ModuleSet
from pcdet_freeze.freezing.entries.paths import unwrap
from pcdet_freeze.freezing.plan import FreezePlan

MODULE_STATE = "_pcdet_freeze_record"
ROOT = "_pcdet_freeze_root"


class Owner(NamedTuple):
    """What one freeze does to a module."""

    token: str
    params: tuple[str, ...]
    """The module's own parameters that it froze."""
    eval_locked: bool
    """It locks the module in eval mode (of an RNN: its dropout at 0)."""
    with_parameters: bool = True
    """It names the module, with its parameters: no FREEZE.PARAMETERS: False, not a tied tensor only."""


@dataclass(frozen=True)
class ModuleState:
    """The freezes that own a module, and the state of the module before the first of them."""

    owners: tuple[Owner, ...] = ()
    grads: tuple[tuple[str, bool], ...] = ()
    """(name of a parameter that an owner froze, its ``requires_grad`` before)."""
    training: bool | None = None
    """Training flag before; None while the module is not locked in eval mode."""
    differed_from_parent: bool = False
    """Whether that flag differed from the parent's."""
    dropout: float | None = None
    """Dropout of an RNN before."""
    released: tuple[str, ...] = ()
    """Freezes that no longer own this module, while their root still lists it."""

    @cached_property
    def tokens(self) -> tuple[str, ...]:
        """Tokens of all owners."""
        return tuple(owner.token for owner in self.owners)

    @cached_property
    def params(self) -> frozenset[str]:
        """Parameters that any owner froze."""
        return frozenset(name for owner in self.owners for name in owner.params)

    @cached_property
    def known(self) -> frozenset[str]:
        """Names of the parameters whose ``requires_grad`` before is known."""
        return frozenset(name for name, _ in self.grads)

    @cached_property
    def eval_locked(self) -> bool:
        """Whether any owner locks the module in eval mode."""
        return any(owner.eval_locked for owner in self.owners)

    def without(self, tokens: frozenset[str] | None) -> ModuleState:
        """This state without the freezes ``tokens`` (None: all)."""
        kept = tuple(owner for owner in self.owners if tokens is not None and owner.token not in tokens)
        return replace(self, owners=kept)


@dataclass(frozen=True)
class FreezeRequest:
    """One freeze, as it is kept on the root."""

    token: str
    plan: FreezePlan
    module_set: ModuleSet
    """The frozen subtrees, by path."""
    eval_set: ModuleSet = field(default_factory=ModuleSet)
    """Subtrees locked in eval mode as a whole (FREEZE.EVAL)."""
    tied: tuple[tuple[str, str], ...] = ()
    """(module path, parameter) outside the frozen modules that share memory with a frozen tensor."""
    users: tuple[str, ...] = ()
    """Modules outside the frozen ones that own a frozen buffer too."""


@dataclass
class FreezeState:
    """The freeze requests of one root, and the states of its modules by path."""

    requests: dict[str, FreezeRequest] = field(default_factory=dict)
    saved_states: dict[str, ModuleState] = field(default_factory=dict)


def get_module_state(module: nn.Module) -> ModuleState | None:
    """The state on ``module``, or None."""
    module_state = module.__dict__.get(MODULE_STATE)
    return module_state if isinstance(module_state, ModuleState) else None


def set_module_state(module: nn.Module, module_state: ModuleState | None) -> None:
    """Set the state of ``module``, or remove it. The only place that writes it."""
    if module_state is not None:
        module.__dict__[MODULE_STATE] = module_state
    else:
        module.__dict__.pop(MODULE_STATE, None)


def freeze_version(root: nn.Module) -> tuple[tuple[int, ModuleState | None], ...]:
    """A value that differs after any change of what is frozen in ``root``, and of its modules.

    It is read from the modules, not from a counter on the root: a freeze may have been requested at a module
    above or below ``root``. Takes about a microsecond a module.
    """
    found, seen, waiting = [], {id(root)}, [root]
    while waiting:
        own = waiting.pop().__dict__
        found.append((id(own), own.get(MODULE_STATE)))
        for child in own["_modules"].values():
            if child is not None and id(child) not in seen:
                seen.add(id(child))
                waiting.append(child)
    return tuple(found)


def get_freeze_state(root: nn.Module) -> FreezeState | None:
    """The freeze requests made at ``root``, or None."""
    state = root.__dict__.get(ROOT)
    return state if isinstance(state, FreezeState) else None


def is_frozen(module: nn.Module) -> bool:
    """Whether ``module`` and every module in it is frozen by some freeze. Wrappers are seen through."""
    return all(_is_frozen_here(part) for part in unwrap(module).modules())


def is_fully_frozen(module: nn.Module) -> bool:
    """Whether all of ``module`` is frozen, parameters too: its output depends on its input alone."""
    return all(_is_frozen_with_parameters(part) for part in unwrap(module).modules())


def _is_frozen_with_parameters(module: nn.Module) -> bool:
    module_state = get_module_state(module)
    return module_state is not None and any(owner.with_parameters for owner in module_state.owners)


def _is_frozen_here(module: nn.Module) -> bool:
    module_state = get_module_state(module)
    return module_state is not None and bool(module_state.owners)
