"""Base classes of hooks, and the registry of those that a config turns on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.registry import Registry

if TYPE_CHECKING:  # the trainer imports this module
    from pcdet_freeze.engine.trainer import Trainer

LrScaledGroups = Sequence[tuple[Collection[str], float]]
"""(names of parameters, multiple of the learning rate) for optimizer groups of their own"""


class Hook:
    """Code that runs at fixed places of the training loop. The trainer calls its hooks in list order:

    ```
    hook.before_train(trainer)
    while trainer.epoch < trainer.epochs:
        hook.before_epoch(trainer)             # again after a resume in the middle of an epoch
        for batch in loader:
            trainer.step(batch)                # model.train(), forward, backward, clip, optimizer
            hook.after_step(trainer)           # trainer.iteration includes this one
        hook.after_epoch(trainer)              # whole epochs only; trainer.epoch includes this one
    hook.after_train(trainer)                  # also where trainer.stopped or max_iters ended the run early
    ```

    ``hook.at_checkpoint(trainer, ours)`` is called on every rank before a checkpoint is written: it may add
    plain data to ``ours``; if it raises, the file is not written. A run that resumes finds it in
    ``trainer.resumed``.

    ``hook.on_exception(trainer)`` is called where an error or Ctrl-C ends the loop; ``after_train`` is not
    called then. An error in it is logged. ``trainer.run()`` may be called again afterwards and starts with
    ``before_train``.

    A hook may replace ``trainer.model`` and ``trainer.optimizer`` (see ``Trainer.rebuild``), set
    ``trainer.stopped`` to end the run after the current step, and add to ``trainer.results``.

    A hook of your own is named in the YAML by its import path; the other keys are the arguments of its
    ``__init__`` in upper case:

    ```yaml
    HOOK:
        - {NAME: my_package.my_module.MyHook, EVERY: 10}      # MyHook(every=10)
    ```

    It runs after the hooks of this package and is filed in ``HOOKS`` under that path.
    """

    def before_train(self, trainer: Trainer) -> None:
        """Model, optimizer and wrappers are complete; nothing has run, or the run continues."""

    def before_epoch(self, trainer: Trainer) -> None:
        """Epoch ``trainer.epoch`` (0-based) starts or continues."""

    def after_step(self, trainer: Trainer) -> None:
        """One iteration is done; its gradients are still there."""

    def after_epoch(self, trainer: Trainer) -> None:
        """One whole epoch is done."""

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        """A checkpoint will be written."""

    def after_train(self, trainer: Trainer) -> None:
        """The run is over."""

    def on_exception(self, trainer: Trainer) -> None:
        """An error or Ctrl-C ended the loop: close files, remove torch hooks. No collective calls here."""


def call_on_exception(trainer: Trainer) -> None:
    """Call ``on_exception`` of all hooks; an error of one must not hide the error that ended the loop."""
    for hook in trainer.hooks:
        try:
            hook.on_exception(trainer)
        except Exception:
            name = type(hook).__name__
            trainer.logger.exception("%s.on_exception raised an error while the run ended by another:", name)


class ConfiguredHook(Hook):
    """A hook that a key of the config turns on, created before the optimizer: it may freeze parameters."""

    @classmethod
    def from_cfg(
        cls,
        cfg: Mapping[str, Any],
        model: nn.Module,
        begun: int = 0,
        epochs: int | None = None,
        plan: FreezePlan | None = None,
    ) -> ConfiguredHook | None:
        """Return the hook for ``model``, or None where ``cfg`` does not ask for it.

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
        """A new run has loaded the tensors ``loaded``; ``rebuild`` builds the same model again."""

    def take_test_data(self, loader: Any) -> None:
        """The run evaluates on the batches of ``loader``."""

    def lr_scaled_groups(self) -> LrScaledGroups:
        """Param groups with an ``lr_scale`` that the optimizer must have when the run starts or resumes."""
        return ()

    def check_resumed(self, ours: Mapping[str, Any]) -> None:
        """A checkpoint's model state has been loaded; ``ours`` is what ``at_checkpoint`` stored with it."""

    def describe(self) -> str:
        """Lines for the head of the log; empty for none."""
        return type(self).__name__


HOOKS: Registry[type[Hook]] = Registry("HOOK")
