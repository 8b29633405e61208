"""Plan at the first training forward, and again when the freeze changes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from torch import nn

from pcdet_freeze.freezing.entries.paths import unwrap
from pcdet_freeze.freezing.prefix.fast_forward import FastForward
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan
from pcdet_freeze.freezing.prefix.validate import plan_for
from pcdet_freeze.freezing.state import freeze_version, is_fully_frozen
from pcdet_freeze.utils.loader_threads import wait_for_loader_threads
from pcdet_freeze.utils.rng import untouched_rng

logger = logging.getLogger("pcdet_freeze.freeze")


class Replanner:
    """Holds the :class:`FastForward` of a model for its present freeze.

    Args:
        shared: see :func:`plan_for`.

    >>> replanner = Replanner(model)
    >>> replanner.prepare(batch)
    >>> with replanner.fast:
    ...     model(batch)
    """

    def __init__(
        self, model: nn.Module, options: Options | None = None, shared: Sequence[object] = ()
    ) -> None:
        self.root, self.options, self.shared = unwrap(model), options or Options(), tuple(shared)
        self.fast = FastForward(self.root, Plan(), self.options)
        self._version: object = None
        self._frozen: tuple[int, ...] = ()

    @property
    def plan(self) -> Plan:
        """The present plan."""
        return self.fast.plan

    @property
    def is_settled(self) -> bool:
        """Whether the freeze is unchanged since the last :meth:`prepare`."""
        return self._version == freeze_version(self.root)

    def prepare(self, *args: Any, **kwargs: Any) -> bool:
        """Make a plan for a forward with these arguments if the frozen modules changed.

        Random generators are left as they were, and threads that load batches with them are waited for.

        Returns:
            Whether a plan was made.

        Raises:
            FreezeError: see :func:`plan_for`.
        """
        if self.is_settled:
            return False
        version = freeze_version(self.root)
        frozen = tuple(id(m) for m in self.root.modules() if is_fully_frozen(m))
        if frozen == self._frozen:
            self._version = version
            return False
        if not wait_for_loader_threads():
            logger.warning(_LOADER_THREAD)
        with untouched_rng():
            plan = plan_for(self.root, args, kwargs, self.options, self.shared)
        self.fast = FastForward(self.root, plan, self.options)
        self._version, self._frozen = version, frozen  # not where planning was interrupted
        return True

    def forget(self) -> None:
        """Plan again in the next :meth:`prepare`: the batch of the present plan may have been at fault."""
        self._version, self._frozen = None, ()


_LOADER_THREAD = (
    "A thread of this process is still loading batches. Random numbers that it draws while the frozen prefix "
    "is planned differ from those of a run without the plan. Load in worker processes instead (num_workers)"
)
