"""What may happen around an iteration: the Hook base, and the hooks that a config turns on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.registry import Registry

LrScaledGroups = Sequence[tuple[Collection[str], float]]
"""(names of parameters, multiple of the learning rate) for optimizer groups of their own"""


class Hook:
    """Something that happens at fixed places of the loop. The trainer calls its hooks in list order:

    ```
    hook.before_train(trainer)
    while trainer.epoch < trainer.epochs:
        hook.before_epoch(trainer)             # again after a resume in the middle of an epoch
        for batch in loader:
            trainer.step(batch)                # model.train(), forward, backward, clip, optimizer
            hook.after_step(trainer)           # trainer.iteration counts this one already
        hook.after_epoch(trainer)              # whole epochs only; trainer.epoch counts this one already
    hook.after_train(trainer)                  # also where trainer.stopped ended the run early
    ```

    ``hook.at_checkpoint(trainer, ours)`` is called on every rank each time that a checkpoint is about to be
    written: it may add plain data to ``ours``, and by raising it keeps the file from being written.

    A hook may replace ``trainer.model`` and ``trainer.optimizer`` (see ``Trainer.rebuild``).
    """

    def before_train(self, trainer: Trainer) -> None:
        """Model, optimizer and wrappers are complete; nothing has run."""

    def before_epoch(self, trainer: Trainer) -> None:
        """Epoch ``trainer.epoch`` (0-based) is about to begin, or to go on."""

    def after_step(self, trainer: Trainer) -> None:
        """One iteration is done; its gradients are still there."""

    def after_epoch(self, trainer: Trainer) -> None:
        """One whole epoch is done."""

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        """A checkpoint is about to be written."""

    def after_train(self, trainer: Trainer) -> None:
        """The run is over."""


class ConfiguredHook(Hook):
    """A hook that a YAML key turns on. It is made before the optimizer, so it may change what trains."""

    @classmethod
    def from_cfg(
        cls,
        cfg: Mapping[str, Any],
        model: nn.Module,
        begun: int = 0,
        epochs: int | None = None,
        plan: FreezePlan | None = None,
    ) -> ConfiguredHook | None:
        """The hook for ``model``, or None where ``cfg`` does not ask for it.

        Args:
            begun: epochs that a resumed run has begun; 0 at the start.
            epochs: length of the run; None where it is not known yet.
            plan: the freeze plan of ``cfg``, where it is parsed.
        """
        raise NotImplementedError(f"{cls.__name__} must say when a config turns it on: define from_cfg")

    def companions(self) -> Sequence[ConfiguredHook]:
        """Further hooks that belong to this one and run after it."""
        return ()

    def check_pretrained_coverage(self, loaded: Collection[str], rebuild: Callable[[], nn.Module]) -> None:
        """A new run has loaded the tensors ``loaded``; ``rebuild`` builds the same model anew."""

    def take_test_data(self, loader: Any) -> None:
        """The run evaluates on the batches of ``loader``."""

    def apart(self) -> LrScaledGroups:
        """What the optimizer must hold in groups of its own when the run starts or goes on."""
        return ()

    def check_resumed(self, ours: Mapping[str, Any]) -> None:
        """A checkpoint's model state has been loaded; ``ours`` is what ``at_checkpoint`` put beside it."""

    def describe(self) -> str:
        """One line for the log's first lines."""
        return type(self).__name__


HOOKS: Registry[type[ConfiguredHook]] = Registry("HOOK")
