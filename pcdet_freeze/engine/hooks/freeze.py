"""MODEL.NOT_TRAIN_IN_MULTI_TASK in a training: freeze before the optimizer is made, prove it to the end.

With FREEZE.SCHEDULE a run is a sequence of spans, in each of which other modules are frozen. A new span
begins with an epoch, on every rank, since all read the same config and count the same epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from pcdet_freeze.engine.hooks.base import HOOKS, ConfiguredHook, LrScaledGroups
from pcdet_freeze.engine.hooks.freeze_checks import FreezeChecksHook, OutputDriftHook
from pcdet_freeze.engine.hooks.frozen_prefix import FrozenPrefixHook
from pcdet_freeze.engine.hooks.savings import SavingsHook
from pcdet_freeze.engine.optim.optimizer import build_optimizer
from pcdet_freeze.engine.optim.optimizer_state import carry_state
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError, ConfigError
from pcdet_freeze.freezing import FreezePlan, freeze
from pcdet_freeze.freezing.certificate import compare_digests
from pcdet_freeze.freezing.checkpoint_meta import CHECKPOINT_KEY, FreezeMetadata, metadata_to_plain
from pcdet_freeze.freezing.checks.pretrained_coverage import check_pretrained_coverage
from pcdet_freeze.freezing.drift_lint import lint
from pcdet_freeze.freezing.module_graph import explain_steps, require_loss
from pcdet_freeze.freezing.prefix import Options
from pcdet_freeze.freezing.schedule import Phase, phase_at, timeline
from pcdet_freeze.utils.distributed import unwrap


@HOOKS.register
class MultiTaskFreezeHook(ConfiguredHook):
    """Holds what the list names, lets parts of it train when the schedule says so, keeps the certificate.

    The certificate is taken when training starts, and checked after the first step, after each epoch (and so
    after a validation), at every checkpoint, where it is stored, and at the end. A tensor that changed on any
    rank stops all ranks, by name. When a part begins to train it is taken anew for what stays frozen.

    Args:
        model: without wrappers; it is frozen here, for the epoch in which the run starts or goes on.
        plan: list and schedule.
        optim_cfg: ``cfg.OPTIMIZATION``, for the optimizers of later spans.
        begun: epochs begun by the run that goes on; 0 at its start.
        epochs: length of the run; None where it is known only when it starts.

    Raises:
        FreezeError: list and schedule cannot be applied, or leave no head with a loss.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: FreezePlan,
        optim_cfg: Mapping[str, Any] | None = None,
        begun: int = 0,
        epochs: int | None = None,
    ) -> None:
        self.plan = plan
        self.spans = timeline(plan, model, epochs)
        self.span = phase_at(self.spans, begun)
        self.optim_cfg = optim_cfg
        if len(self.spans) > 1 and optim_cfg is None:
            raise ConfigError("FREEZE.SCHEDULE makes the optimizer anew and needs OPTIMIZATION; got none")
        self.handle = freeze(model, self.span.plan, rebuilds_ddp=self.span is not self.spans[0])
        require_loss(model)
        self._first_step_checked = False
        self._warned: set[str] = set()

    @classmethod
    def from_cfg(
        cls,
        cfg: Mapping[str, Any],
        model: nn.Module,
        begun: int = 0,
        epochs: int | None = None,
        plan: FreezePlan | None = None,
    ) -> MultiTaskFreezeHook | None:
        """Freeze what ``plan``, else ``cfg``, names in ``model``; None where nothing is named."""
        plan = FreezePlan.from_cfg(cfg) if plan is None else plan
        return cls(model, plan, cfg.get("OPTIMIZATION"), begun, epochs) if plan else None

    def apart(self) -> LrScaledGroups:
        return _apart(self.span)

    def companions(self) -> Sequence[ConfiguredHook]:
        options = Options.of(self.plan)
        if not self.plan.parameters:
            return FreezeChecksHook(self), OutputDriftHook(self)
        fast, saves = (
            FrozenPrefixHook(self.handle.model, options, self.plan.cache),
            SavingsHook(self, options),
        )
        return fast, FreezeChecksHook(self), OutputDriftHook(self), saves

    def check_pretrained_coverage(self, loaded: Collection[str], rebuild: Callable[[], nn.Module]) -> None:
        check_pretrained_coverage(self.handle, loaded, rebuild)

    def check_resumed(self, ours: Mapping[str, Any]) -> None:
        """Compare the loaded state with the certificate stored beside it, as far as both freeze the same.

        Raises CertificateError where it differs.
        """
        stored = FreezeMetadata.of({CHECKPOINT_KEY: ours}).certificate
        if stored is None:
            return
        now = self.handle.certificate().digests
        then = {name: digest for name, digest in stored.digests.items() if name in now}
        changed = compare_digests(then, {name: now[name] for name in then})
        if changed:
            raise CertificateError(
                "The frozen state of a checkpoint must be what its own certificate says, but differs in:\n  "
                + "\n  ".join(changed)
                + "\nThe file was changed after it was written: resume from another one with --ckpt."
            )

    def describe(self) -> str:
        phases = [line for span in self.spans for line in span.lines()]
        return "\n".join([*self._told(), *(f"  schedule: {line}" for line in phases)])

    def _told(self) -> list[str]:
        """What is frozen now, and the notes on it."""
        notes = [*self.handle.notes, *explain_steps(self.handle.model)]
        return [self.span.summary(self.handle), *(f"  note: {note}" for note in notes)]

    def before_train(self, trainer: Trainer) -> None:
        for span in self.spans:
            if span.begins >= trainer.epochs:
                text = "Not in this run of %d epochs: %s"
                trainer.logger.warning(text, trainer.epochs, "; ".join(span.lines()))
        self._warn_of_drift(trainer)
        self.handle.renew()
        self._first_step_checked = False

    def before_epoch(self, trainer: Trainer) -> None:
        span = phase_at(self.spans, trainer.epoch + 1)
        if span is not self.span:
            self._check(f"before epoch {trainer.epoch + 1}, when parts of it begin to train,")
            self._enter(span, trainer)

    def after_step(self, trainer: Trainer) -> None:
        if not self._first_step_checked:
            self._first_step_checked = True
            self._check("after the first step")

    def after_epoch(self, trainer: Trainer) -> None:
        self._check(f"after epoch {trainer.epoch}")

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        self._check(f"at the checkpoint of iteration {trainer.iteration}")
        ours["freeze"] = metadata_to_plain(self.plan, self.handle.certificate())

    def after_train(self, trainer: Trainer) -> None:
        self._check("at the end")
        if self.handle.certificate().digests:  # a schedule may have freed everything
            what = "frozen state is" if self.plan.parameters else "statistics of the held layers are"
            trainer.logger.info("Certificate intact: the %s the same as at the start, bit for bit.", what)

    def _enter(self, span: Phase, trainer: Trainer) -> None:
        """Freeze for ``span``; what it frees enters the optimizer with fresh state, the rest keep theirs."""
        model, before = unwrap(trainer.model), self.handle
        # first the new freeze, then the old one's release: what both hold is not let go in between
        self.handle = freeze(model, span.plan, rebuilds_ddp=True)
        before.release(rebuilds_ddp=True)
        self.span = span
        optimizer = build_optimizer(model, self.optim_cfg or {}, self.apart())
        kept, fresh = carry_state(trainer.optimizer, optimizer)
        trainer.rebuild(optimizer)
        self._first_step_checked = False
        trainer.logger.info("Epoch %d: %s", trainer.epoch + 1, "; ".join(span.lines()))
        trainer.logger.info(
            "Optimizer state: %d parameters keep theirs, %d start with a fresh one. Certificate renewed.",
            kept,
            fresh,
        )
        notes = [*self.handle.notes, *explain_steps(model)]
        trainer.logger.info(
            "%s", "\n".join([self.span.summary(self.handle), *(f"  note: {note}" for note in notes)])
        )
        self._warn_of_drift(trainer)

    def _warn_of_drift(self, trainer: Trainer) -> None:
        """Each warning once a run."""
        for drift in dict.fromkeys(map(str, lint(self.handle.model))):
            if drift not in self._warned:
                self._warned.add(drift)
                trainer.logger.warning("%s", drift)

    def _check(self, when: str) -> None:
        """All ranks hear all verdicts before any raises: nobody is left waiting in a collective call."""
        try:
            self.handle.verify()
        except CertificateError as error:
            raise CertificateError(
                f"Frozen state must not change, but {when} it had. No checkpoint was written with it; look "
                f"for what writes to these tensors besides the optimizer.\n{error}"
            ) from error


def _apart(span: Phase) -> LrScaledGroups:
    """Groups of their own for what entered with a learning rate of its own."""
    return [(part.names, part.lr_scale) for part in span.entered if part.names and part.lr_scale != 1]
