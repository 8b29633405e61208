"""One frozen model of OpenPCDet, from its building to the end of its training."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from pcdet_freeze.engine.hooks.freeze_checks import FreezeChecksHook
from pcdet_freeze.errors import CertificateError, FreezeError, PCDetFreezeError
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.checkpoint_meta import CHECKPOINT_KEY, metadata_to_plain
from pcdet_freeze.freezing.checks.pretrained_coverage import check_pretrained_coverage
from pcdet_freeze.freezing.drift_lint import lint
from pcdet_freeze.freezing.paths import unwrap
from pcdet_freeze.freezing.schedule import phase_at, timeline
from pcdet_freeze.integrations.openpcdet import frozen_heads
from pcdet_freeze.integrations.openpcdet.forward import SESSION, checked_forward
from pcdet_freeze.integrations.openpcdet.optimizer import StandIn, optimizer_of, settle_groups
from pcdet_freeze.integrations.openpcdet.schedule import Rates, take_in, wrapped_anew

BEGUN = "begun"
"""key of our part of a checkpoint, beside the header: epochs begun when it was written"""


@dataclass
class Loop:
    """What the checks of the first steps read of a training loop."""

    model: nn.Module
    """in its wrappers"""
    optimizer: torch.optim.Optimizer
    logger: logging.Logger
    iteration: int = 0


class Session:
    """Freezes ``model`` at once, and is told what happens to it.

    Args:
        model: fresh from ``build_network``.
        plan: the list, not empty.
        logger: where OpenPCDet logs.
        rebuild: builds the same model anew.

    Raises:
        FreezeError: the list cannot be applied, or leaves nothing to train.
    """

    def __init__(
        self, model: nn.Module, plan: FreezePlan, logger: logging.Logger, rebuild: Callable[[], nn.Module]
    ) -> None:
        self.model, self.plan, self.logger, self.rebuild = model, plan, logger, rebuild
        self.spans = timeline(plan, model)
        self.span = self.spans[0]
        self.handle = freeze(model, self.span.plan)
        self._as_built = self.handle.certificate()
        self.loaded: set[str] = set()
        """names of the tensors that came from files"""
        self.fault: PCDetFreezeError | None = None
        """what went wrong where OpenPCDet hides errors; raised where it does not"""
        self.fault_is_final = False
        """whether another checkpoint that can be loaded does not make up for it"""
        self.has_begun = self.has_ended = False
        self.epochs_begun = 0
        self._rates = Rates()
        self._check_something_trains()
        self.quiet = frozen_heads.quieten(model)
        self.loop = Loop(model, StandIn(model), logger)
        first_steps: Any = FreezeChecksHook(self)
        self._first_steps = first_steps  # it reads of a trainer what Loop has
        self._first_steps.before_train(self.loop)
        self._watched: Any = None
        model.__dict__[SESSION] = self
        frozen_heads.put(model, "forward", partial(checked_forward, model))

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model is not in this training: its session is None."""
        return type(None), ()

    def tell(self) -> None:
        """Log what is frozen, the table, what becomes of heads, and what will drift."""
        notes = [f"note: {note}" for note in frozen_heads.explain_heads(self.model)]
        lines = [self.span.summary(self.handle), self.handle.report(), *notes]
        if self.span is self.spans[0]:
            lines += [f"schedule: {line}" for line in self.schedule()]
        self.logger.info("pcdet_freeze: %s", "\n".join(lines))
        for drift in lint(self.model):
            self.logger.warning("pcdet_freeze: %s", drift)

    def schedule(self) -> list[str]:
        """What begins to train later, one line a phase."""
        return [line for span in self.spans for line in span.lines()]

    def settle_optimizer(self, optimizer: Any) -> None:
        """An optimizer was built for the model, or is about to train it."""
        found = settle_groups(self.handle, optimizer, self.logger)
        if found is not None:
            self.loop.optimizer = found

    def begin(self, model: nn.Module, optimizer: Any, start_epoch: int, total_epochs: int) -> None:
        """OpenPCDet's loop is about to begin. Raises what must not be hidden any longer."""
        self.loop.model, self.epochs_begun = model, start_epoch
        self.settle_optimizer(optimizer)
        self._begin()
        self._first_steps.before_epoch(self.loop)
        for span in self.spans:
            if span.begins >= total_epochs:
                text = "pcdet_freeze: not in this run of %d epochs: %s"
                self.logger.warning(text, total_epochs, "; ".join(span.lines()))

    def lacks(self, function: str, loss: str, quiet: bool = False) -> None:
        """This OpenPCDet, or this loop, goes without a function; FreezeError where the schedule needs it."""
        if len(self.spans) > 1:
            raise FreezeError(
                "FREEZE.SCHEDULE follows the epochs of OpenPCDet's train_model and train_one_epoch, but "
                f"this training has no {function}: leave the schedule out"
            )
        if not quiet:
            self.logger.warning("pcdet_freeze: this OpenPCDet has no %s: %s", function, loss)

    def before_epoch(self, epoch: int | None) -> nn.Module:
        """An epoch begins, the ``epoch``-th from 0 (None: the next); returns the model to train in it."""
        self.epochs_begun = self.epochs_begun + 1 if epoch is None else epoch + 1
        if phase_at(self.spans, self.epochs_begun) is not self.span:
            self.check(f"before epoch {self.epochs_begun}, when parts of it begin to train,")
            self.enter(self.epochs_begun)
            self.loop.model = wrapped_anew(self.loop.model)
            self._first_steps.before_train(self.loop)
        return self.loop.model

    def enter(self, epochs_begun: int) -> None:
        """Freeze as the schedule has it in an epoch; what it frees enters the optimizer with fresh state."""
        spans = self.spans[self.spans.index(self.span) + 1 :]
        self.epochs_begun = epochs_begun
        for span in spans[: spans.index(phase_at(self.spans, epochs_begun)) + 1]:
            before = self.handle
            # first the new freeze, then the old one's release: what both hold is not let go in between
            self.handle = freeze(self.model, span.plan, rebuilds_ddp=True)
            before.release(rebuilds_ddp=True)
            self.span = span
            for entered in span.entered[len(span.entered) - len(span.phases) :]:
                self._rates.add(take_in(self.model, self.loop.optimizer, entered), entered.lr_scale)
            self.logger.info("pcdet_freeze: %s", "; ".join(span.lines()))
        frozen_heads.quieten(self.model)
        self.tell()

    def before_forward(self) -> None:
        """A training forward is about to run, perhaps of a loop that the plugin does not know."""
        if self.has_begun:
            return
        self.lacks("train_model", "its own loop is looked on at in part only", quiet=True)
        found = optimizer_of(self.model)
        if found is not None:
            self.settle_optimizer(found)
        else:
            self.logger.warning("pcdet_freeze: no single optimizer trains this model yet: it is not audited.")
        self._begin()

    def _begin(self) -> None:
        if self.fault is not None:
            raise self.fault
        check_pretrained_coverage(self.handle, self.loaded | self._changed_since_built(), self.rebuild)
        self.weights_are_loaded()
        self.has_begun = True
        self._watched = self.loop.optimizer.register_step_post_hook(self._after_step)

    def _changed_since_built(self) -> set[str]:
        """Names of tensors that somebody filled without ``load_state_dict``."""
        before = self._as_built.digests
        return {
            name for name, value in self.handle.certificate().digests.items() if before.get(name) != value
        }

    def weights_are_loaded(self) -> None:
        """What the weights are now is what they shall stay."""
        self.handle.renew()
        self._rates.refresh()

    def _after_step(self, *_: Any) -> None:
        self._rates.after_step()
        self.loop.iteration += 1
        if self.loop.iteration == 1:
            self.check("after the first step")
            self._first_steps.before_epoch(
                self.loop
            )  # of an unknown loop, the optimizer was not known before

    def after_epoch(self) -> None:
        """All ranks are here."""
        self.check("after an epoch")

    def at_checkpoint(self, state: dict[str, Any]) -> None:
        """Rank 0 is about to save ``state``: check, and store the certificate in it."""
        if self.has_begun:
            self.check("at a checkpoint", agreed=False)
        header = metadata_to_plain(self.plan, self.handle.certificate())
        state[CHECKPOINT_KEY] = {"freeze": {**header, BEGUN: self.epochs_begun}}

    def end(self) -> None:
        """The training is over."""
        self._first_steps.after_train(self.loop)
        self.check("at the end")
        self.has_ended = True
        if self.handle.names:  # a schedule may have freed everything
            self.logger.info(
                "pcdet_freeze: certificate intact: the frozen state is the same as at the start, bit for bit."
            )

    def check(self, when: str, agreed: bool = True) -> None:
        """Raise CertificateError if frozen state changed; on all ranks, where ``agreed``."""
        try:
            self.handle.verify(agreed=agreed)
        except CertificateError as error:
            raise CertificateError(
                f"Frozen state must not change, but {when} it had. Look for what writes to these tensors "
                f"besides the optimizer.\n{error}"
            ) from error

    def release(self) -> None:
        """Let the model go, exactly as it was built. Raises FreezeError under a live DDP."""
        self.handle.release()
        self._first_steps.stop_watching()
        if self._watched is not None:
            self._watched.remove()
        for part in frozen_heads.parts(self.model):
            frozen_heads.restore(part.module)
        frozen_heads.restore(self.model)
        self.model.__dict__.pop(SESSION, None)

    def _check_something_trains(self) -> None:
        if self.plan.parameters:
            frozen_heads.require_loss(self.model)
        if not any(parameter.requires_grad for parameter in self.model.parameters()):
            raise FreezeError(
                "Something must be left to train, but every parameter of the model is frozen. Take an entry "
                "out of MODEL.NOT_TRAIN_IN_MULTI_TASK."
            )


def session_of(model: Any) -> Session | None:
    """The session of a model, wrapped or not; None where it is not frozen by this plugin."""
    found = unwrap(model).__dict__.get(SESSION) if isinstance(model, nn.Module) else None
    return found if isinstance(found, Session) else None
