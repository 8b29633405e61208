"""The freeze of one OpenPCDet model, from ``build_network`` to the end of its training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import Optimizer

from pcdet_freeze.errors import CertificateError, FreezeError, PCDetFreezeError
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.checks.first_steps import FirstSteps
from pcdet_freeze.freezing.checks.pretrained_coverage import check_pretrained_coverage
from pcdet_freeze.freezing.data_flow.drift_lint import lint
from pcdet_freeze.freezing.entries.paths import unwrap
from pcdet_freeze.freezing.schedule import phase_at, timeline
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY, metadata_to_plain
from pcdet_freeze.integrations.openpcdet.checkpoint.continuation import continuation
from pcdet_freeze.integrations.openpcdet.model import frozen_heads
from pcdet_freeze.integrations.openpcdet.model.forward import SESSION, checked_forward
from pcdet_freeze.integrations.openpcdet.optimizer.param_groups import (
    DroppedParameters,
    find_optimizer,
    fix_groups,
)
from pcdet_freeze.integrations.openpcdet.optimizer.schedule import LrScales, add_to_groups, rewrap_ddp
from pcdet_freeze.integrations.openpcdet.prefix.frozen_prefix import FrozenPrefix
from pcdet_freeze.utils.step_hooks import is_skipped, keep_step_hooks

BEGUN = "begun"
"""key in the freeze metadata of a checkpoint: number of epochs begun when it was written"""


class Session:
    """Freezes ``model`` when it is created; the replaced functions of OpenPCDet call its methods.

    Args:
        model: new from ``build_network``.
        plan: the list, not empty.
        logger: OpenPCDet's logger.
        rebuild: builds the same model again.

    Raises:
        FreezeError: the list cannot be applied, or leaves no trainable parameter.
    """

    def __init__(
        self, model: nn.Module, plan: FreezePlan, logger: logging.Logger, rebuild: Callable[[], nn.Module]
    ) -> None:
        self.model, self.plan, self.logger, self.rebuild = model, plan, logger, rebuild
        self.phases = timeline(plan, model)
        self.phase = self.phases[0]
        self.handle = freeze(model, self.phase.plan)
        self._as_built = self.handle.certificate()
        self.loaded: set[str] = set()
        """names of tensors that were loaded from files"""
        self.pending_error: PCDetFreezeError | None = None
        """an error in code whose exceptions OpenPCDet swallows; raised when the training begins"""
        self.pending_error_is_final = False
        """whether it stays when another checkpoint is loaded without error"""
        self.has_begun = self.has_ended = False
        self.epochs_begun = 0
        self._has_checkpoint = False
        """whether there is a checkpoint to resume from"""
        self._has_stepped = False
        """whether the optimizer has made a step that a GradScaler did not skip"""
        self._lr_scales = LrScales()
        self._dropped = DroppedParameters(model, plan.train_dropped, logger)
        self._check_trainable()
        self._lr_scales.add_modules(self.plan, self.model)
        frozen_heads.patch_frozen_heads(model)
        self.wrapped: nn.Module = model
        """the model as the training loop calls it, in its wrappers"""
        self.optimizer: Optimizer | None = None
        self._first_steps = FirstSteps(logger)
        self.prefix = FrozenPrefix(model, plan, logger)
        self._watch_first_steps()
        self._step_hook: Any = None
        model.__dict__[SESSION] = self
        frozen_heads.replace_method(model, "forward", partial(checked_forward, model))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model does not belong to this training: its session is None."""
        return type(None), ()

    def _watch_first_steps(self) -> None:
        self._first_steps.watch(self.handle, self.wrapped, self.optimizer, self._dropped.names)
        self.prefix.watch(self.wrapped, self._first_steps.end_forward)

    def log_summary(self) -> None:
        """Log what is frozen, a table of the modules, the heads without a loss, and expected drift."""
        notes = [f"note: {note}" for note in frozen_heads.explain_heads(self.model)]
        lines = [self.phase.summary(self.handle), self.handle.report(), *notes]
        if self.phase is self.phases[0]:
            lines += [f"schedule: {line}" for line in self.schedule()]
        self.logger.info("pcdet_freeze: %s", "\n".join(lines))
        for drift in lint(self.model):
            self.logger.warning("pcdet_freeze: %s", drift)

    def schedule(self) -> list[str]:
        """What later phases unfreeze, one line per entry of the schedule."""
        return [line for phase in self.phases for line in phase.lines()]

    def use_optimizer(self, optimizer: Any) -> None:
        """Fix the param groups of the optimizer that trains the model. Raises FreezeError (P5)."""
        found = fix_groups(self.handle, optimizer, self._dropped)
        if found is not None:
            self.optimizer = found

    def begin(self, model: nn.Module, optimizer: Any, start_epoch: int, total_epochs: int) -> None:
        """The training begins: run the checks that precede it, and raise a pending error.

        Args:
            model: in its wrappers.
            start_epoch: number of finished epochs.
            total_epochs: number of epochs of the run.
        """
        self.wrapped, self.epochs_begun = model, start_epoch
        self._has_checkpoint = start_epoch > 0
        self.use_optimizer(optimizer)
        self._begin()
        self._watch_first_steps()
        for phase in self.phases:
            if phase.begins >= total_epochs:
                text = "pcdet_freeze: not in this run of %d epochs: %s"
                self.logger.warning(text, total_epochs, "; ".join(phase.lines()))

    def begin_own_loop(self, model: nn.Module, optimizer: Any) -> None:
        """As :meth:`begin`, for a training loop that is not OpenPCDet's."""
        self.check_no_schedule("train_model")
        self.begin(model, optimizer, 0, 1)

    def check_no_schedule(self, function: str) -> None:
        """Raise FreezeError if there is a schedule, which needs ``function`` of OpenPCDet's train_utils."""
        if len(self.phases) > 1:
            raise FreezeError(
                "FREEZE.SCHEDULE needs OpenPCDet's train_model and train_one_epoch to follow the epochs, but "
                f"this training does not use {function}. Remove the schedule."
            )

    def warn_missing(self, function: str, consequence: str) -> None:
        """Warn that this version of OpenPCDet lacks ``function``; FreezeError if the schedule needs it."""
        self.check_no_schedule(function)
        self.logger.warning("pcdet_freeze: this OpenPCDet has no %s: %s", function, consequence)

    def before_epoch(self, epoch: int | None) -> nn.Module:
        """An epoch begins. Returns the model to train in it, in its wrappers.

        Args:
            epoch: number of the epoch, from 0; None: the next one.
        """
        self.epochs_begun = self.epochs_begun + 1 if epoch is None else epoch + 1
        if phase_at(self.phases, self.epochs_begun) is not self.phase:
            self.check(f"before epoch {self.epochs_begun}, when a phase of the schedule begins,")
            self.enter_phase(self.epochs_begun)
            self.wrapped = rewrap_ddp(self.wrapped)
            self._watch_first_steps()
        return self.wrapped

    def enter_phase(self, epochs_begun: int) -> None:
        """Apply the schedule of an epoch; unfrozen parameters enter the optimizer without state."""
        later = self.phases[self.phases.index(self.phase) + 1 :]
        self.epochs_begun = epochs_begun
        for phase in later[: later.index(phase_at(self.phases, epochs_begun)) + 1]:
            before = self.handle
            # freeze before the release, so that modules in both phases are never unfrozen in between
            self.handle = freeze(self.model, phase.plan, rebuilds_ddp=True)
            before.release(rebuilds_ddp=True)
            self.phase = phase
            for added in phase.entered[len(phase.entered) - len(phase.phases) :]:
                names = self._dropped.to_train(added.names)
                self._lr_scales.add(add_to_groups(self.model, self.optimizer, names), added.lr_scale)
            self._lr_scales.add_modules(self.plan, self.model)
            self.logger.info("pcdet_freeze: %s", "; ".join(phase.lines()))
        frozen_heads.patch_frozen_heads(self.model)
        self.log_summary()

    def before_forward(self) -> None:
        """A training forward begins, perhaps in a loop that the plugin does not know."""
        if self.has_begun:
            return
        self.check_no_schedule("train_model")
        found = find_optimizer(self.model)
        if found is not None:
            self.use_optimizer(found)
        else:
            self.logger.warning(
                "pcdet_freeze: no single optimizer has parameters of this model yet: its param groups are "
                "not checked. Call pcdet_freeze.openpcdet.begin(model, optimizer) before the first step."
            )
        self._begin()

    def _begin(self) -> None:
        if self.pending_error is not None:
            raise self.pending_error
        check_pretrained_coverage(self.handle, self.loaded | self._changed_since_built(), self.rebuild)
        self.renew_certificate()
        self.has_begun = True
        self._remove_step_hook()
        if self.optimizer is not None:
            keep_step_hooks(self.optimizer)
            self._step_hook = self.optimizer.register_step_post_hook(self._after_step)

    def _changed_since_built(self) -> set[str]:
        """Names of tensors that were changed without ``load_state_dict``."""
        before = self._as_built.digests
        return {
            name for name, value in self.handle.certificate().digests.items() if before.get(name) != value
        }

    def renew_certificate(self) -> None:
        """Certify the weights as they are now, after loading."""
        self.handle.renew()
        self._lr_scales.refresh()

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        self._lr_scales.after_step()
        if not self._has_stepped and not is_skipped(optimizer):
            self._has_stepped = True
            self.check("after the first step")
            # in an unknown loop the optimizer was found during the first forward, too late to watch that one
            self._watch_first_steps()

    def after_epoch(self) -> None:
        """Check after an epoch. Collective: every rank must call it."""
        self.check("after an epoch")

    def at_checkpoint(self, state: dict[str, Any]) -> None:
        """Check, and add the freeze metadata to the checkpoint ``state``. Called on rank 0 only."""
        if self.has_begun:
            self.check("at a checkpoint", agreed=False)
        metadata = metadata_to_plain(self.plan, self.handle.certificate())
        state[CHECKPOINT_KEY] = {"freeze": {**metadata, BEGUN: self.epochs_begun}}
        self._has_checkpoint = True

    def end(self) -> None:
        """The training ended: the last checks."""
        self._first_steps.finish()
        self.check("at the end")
        self.has_ended = True
        if self.handle.names:  # a schedule may have unfrozen everything
            self.logger.info(
                "pcdet_freeze: certificate intact: the frozen state is the same as at the start, bit for bit."
            )
        self.logger.info("pcdet_freeze: %s", continuation(self.plan))

    def interrupted(self) -> None:
        """The training raised an error: log how its last checkpoint, if it has one, is continued."""
        if self._has_checkpoint:
            self.logger.info("pcdet_freeze: %s", continuation(self.plan))

    def check(self, when: str, agreed: bool = True) -> None:
        """Raise CertificateError if frozen state changed.

        Args:
            when: for the message.
            agreed: all ranks raise if one does; every rank must then call it.
        """
        try:
            self.handle.verify(agreed=agreed)
        except CertificateError as error:
            raise CertificateError(
                f"Frozen state changed (found {when}). Look for code other than the optimizer "
                f"that writes to these tensors.\n{error}"
            ) from error

    def release(self) -> None:
        """Unfreeze the model and restore it as it was built. Raises FreezeError under a live DDP."""
        self.handle.release()
        self._first_steps.stop()
        self.prefix.stop()
        self._remove_step_hook()
        for part in frozen_heads.parts(self.model):
            frozen_heads.restore(part.module)
        frozen_heads.restore(self.model)
        self.model.__dict__.pop(SESSION, None)

    def _remove_step_hook(self) -> None:
        if self._step_hook is not None:
            self._step_hook.remove()
            self._step_hook = None

    def _check_trainable(self) -> None:
        if self.plan.parameters:
            frozen_heads.require_loss(self.model)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise FreezeError(
                "At least one parameter must be trainable, but every parameter of the model is frozen. "
                "Remove an entry from MODEL.NOT_TRAIN_IN_MULTI_TASK."
            )


def session_of(model: Any) -> Session | None:
    """The session of a model, wrapped or not; None if this plugin did not freeze it."""
    found = unwrap(model).__dict__.get(SESSION) if isinstance(model, nn.Module) else None
    return found if isinstance(found, Session) else None
