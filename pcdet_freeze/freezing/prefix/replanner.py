"""A plan that is made when it is needed first, and again when something else is frozen."""

from __future__ import annotations

from typing import Any

from torch import nn

from pcdet_freeze.freezing.paths import unwrap
from pcdet_freeze.freezing.prefix.fast_forward import FastForward
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan
from pcdet_freeze.freezing.prefix.validate import plan_for
from pcdet_freeze.freezing.state import freeze_version, is_fully_frozen


class Replanner:
    """The :class:`FastForward` of a model, whatever is frozen in it.

    >>> renewed = Renewed(model)
    >>> renewed.prepare(batch)
    >>> with renewed.fast:
    ...     model(batch)
    """

    def __init__(self, model: nn.Module, options: Options | None = None) -> None:
        self.root, self.options = unwrap(model), options or Options()
        self.fast = FastForward(self.root, Plan(), self.options)
        self._version: object = None
        self._still: tuple[int, ...] = ()

    @property
    def plan(self) -> Plan:
        """The present plan."""
        return self.fast.plan

    @property
    def is_settled(self) -> bool:
        """Whether :meth:`prepare` has nothing to do: nothing was frozen or released since."""
        return self._version == freeze_version(self.root)

    def prepare(self, *args: Any, **kwargs: Any) -> bool:
        """Make the plan for a forward with these arguments, unless there is one; returns whether it was made.

        Raises FreezeError as :func:`plan_for` does.
        """
        if self.is_settled:
            return False
        self._version = freeze_version(self.root)
        still = tuple(id(m) for m in self.root.modules() if is_fully_frozen(m))
        if still == self._still:
            return False
        self._still = still
        self.fast = FastForward(self.root, plan_for(self.root, args, kwargs, self.options), self.options)
        return True
