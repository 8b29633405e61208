"""What freezing writes down, on the model itself, so that it survives copying and replaced children.

* A :class:`Record` lies on every frozen module: who owns it, and what it was before.
* A :class:`RootState` lies on the module that was given to ``freeze``: the claims made there, and the records
  by path, for a child that is replaced by another (``convert_sync_batchnorm``).

Both are plain instance attributes: no parameter, no buffer, nothing in the ``state_dict``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from torch import nn

from pcdet_freeze.freezing.paths import Cover, unwrap
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
class Record:
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

    def without(self, tokens: frozenset[str] | None) -> Record:
        """This record after the freezes ``tokens`` (None: all) let go."""
        kept = tuple(owner for owner in self.owners if tokens is not None and owner.token not in tokens)
        return replace(self, owners=kept)


@dataclass(frozen=True)
class Claim:
    """One freeze, as its root remembers it."""

    token: str
    plan: FreezePlan
    cover: Cover
    """The frozen subtrees, by path."""
    eval_cover: Cover = field(default_factory=Cover)
    """Subtrees held in eval as a whole (FREEZE.EVAL)."""
    tied: tuple[tuple[str, str], ...] = ()
    """(module path, parameter) outside the cover that share memory with a frozen tensor."""
    users: tuple[str, ...] = ()
    """Modules outside the cover that own a frozen buffer too."""


@dataclass
class RootState:
    """The claims on one root, and the records of its modules by path."""

    claims: dict[str, Claim] = field(default_factory=dict)
    memory: dict[str, Record] = field(default_factory=dict)


def record_of(module: nn.Module) -> Record | None:
    """The record on ``module``, or None."""
    record = module.__dict__.get(RECORD)
    return record if isinstance(record, Record) else None


def write_record(module: nn.Module, record: Record | None) -> None:
    """Lay ``record`` on ``module``, or take its record away. Nobody else writes records."""
    global _stamp
    _stamp = object()
    if record is not None:
        module.__dict__[RECORD] = record
    else:
        module.__dict__.pop(RECORD, None)


_stamp = object()


def freeze_stamp() -> object:
    """An object that is another one after any change of what is frozen, in any model of this process."""
    return _stamp


def state_of(root: nn.Module) -> RootState | None:
    """The claims made at ``root``, or None."""
    state = root.__dict__.get(ROOT)
    return state if isinstance(state, RootState) else None


def is_frozen(module: nn.Module) -> bool:
    """Whether ``module`` and every module in it is held by some freeze. Wrappers are seen through."""
    return all(_owned(part) for part in unwrap(module).modules())


def is_still(module: nn.Module) -> bool:
    """Whether ``module`` is named whole, its parameters too: its output depends on its input alone."""
    return all(_owned_with_parameters(part) for part in unwrap(module).modules())


def _owned_with_parameters(module: nn.Module) -> bool:
    record = record_of(module)
    return record is not None and any(owner.everything for owner in record.owners)


def _owned(module: nn.Module) -> bool:
    record = record_of(module)
    return record is not None and bool(record.owners)
