"""MODEL.NOT_TRAIN_IN_MULTI_TASK in a training: freeze before the optimizer is built, certify to the end.

With FREEZE.SCHEDULE a run is a sequence of phases, each with its own set of frozen modules. A new phase
begins with an epoch, on all ranks, since all read the same config and count the same epochs.
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
from pcdet_freeze.errors import CertificateError, ConfigError, FreezeError
from pcdet_freeze.freezing import FreezeHandle, FreezePlan, freeze
from pcdet_freeze.freezing.checks.pretrained_coverage import check_pretrained_coverage
from pcdet_freeze.freezing.data_flow.drift_lint import lint
from pcdet_freeze.freezing.data_flow.module_graph import explain_steps, require_loss, stages
from pcdet_freeze.freezing.lr_scale import lr_scaled_groups
from pcdet_freeze.freezing.prefix import Options
from pcdet_freeze.freezing.schedule import Phase, phase_at, timeline
from pcdet_freeze.freezing.verification.certificate import compare_digests
from pcdet_freeze.freezing.verification.checkpoint_meta import (
    CHECKPOINT_KEY,
    FreezeMetadata,
    metadata_to_plain,
)
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.step_hooks import FirstStep


@HOOKS.register
class MultiTaskFreezeHook(ConfiguredHook):
    """Freezes the modules of the list, releases parts of them by the schedule, checks the certificate.

    The certificate is taken when training starts, and checked after the first step, after each epoch (and so
    after a validation), at every checkpoint, where it is stored, when an interrupted run continues, and at
    the end. A tensor that changed on any rank stops all ranks, and is named. When a phase releases a part,
    the certificate is taken again for what stays frozen.

    Args:
        model: without wrappers; it is frozen here, for the epoch in which the run starts or resumes.
        plan: list and schedule.
        optim_cfg: ``cfg.OPTIMIZATION``, for the optimizers of later phases.
        begun: epochs that a resumed run has begun; 0 at the start.
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
        raise_faults(plan.openpcdet_only(), error=FreezeError)
        self.plan = plan
        self.phases = timeline(plan, model, epochs)
        self.phase = phase_at(self.phases, begun)
        self.optim_cfg = optim_cfg
        if len(self.phases) > 1 and optim_cfg is None:
            raise ConfigError("FREEZE.SCHEDULE rebuilds the optimizer and needs OPTIMIZATION; got none")
        self.handle = freeze(model, self.phase.plan, rebuilds_ddp=self.phase is not self.phases[0])
        require_loss(model)
        self._certified: FreezeHandle | None = None
        self._first_step = FirstStep()
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

    def lr_scaled_groups(self) -> LrScaledGroups:
        parts = self.phase.entered
        return [(part.names, part.lr_scale) for part in parts if part.names and part.lr_scale != 1]

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
        """Compare the loaded state with the certificate stored with it, for tensors that both freeze.

        Raises CertificateError if it differs.
        """
        stored = FreezeMetadata.of({CHECKPOINT_KEY: ours}).certificate
        if stored is None:
            return
        now = self.handle.certificate().digests
        then = {name: digest for name, digest in stored.renamed(now).digests.items() if name in now}
        changed = compare_digests(then, {name: now[name] for name in then})
        if changed:
            raise CertificateError(
                "The frozen state of a checkpoint must match its own certificate, but differs in:\n  "
                + "\n  ".join(changed)
                + "\nThe file was changed after it was written. Resume from another one with --ckpt."
            )

    def describe(self) -> str:
        schedule = [line for phase in self.phases for line in phase.lines()]
        return "\n".join([self._summary(), *(f"  schedule: {line}" for line in schedule)])

    def _summary(self) -> str:
        """What is frozen now, with notes."""
        notes = [*self.handle.notes, *explain_steps(self.handle.model)]
        return "\n".join([self.phase.summary(self.handle), *(f"  note: {note}" for note in notes)])

    def before_train(self, trainer: Trainer) -> None:
        for phase in self.phases:
            if phase.begins >= trainer.epochs:
                text = "Not in this run of %d epochs: %s"
                trainer.logger.warning(text, trainer.epochs, "; ".join(phase.lines()))
        self._warn_of_drift(trainer)
        if self._certified is self.handle:  # the run continues: what was frozen before must still be so
            self._check(f"before the run continues at iteration {trainer.iteration}")
        else:
            self.handle.renew()
            self._certified = self.handle
        self._first_step.wait_for(trainer.optimizer)

    def before_epoch(self, trainer: Trainer) -> None:
        phase = phase_at(self.phases, trainer.epoch + 1)
        if phase is not self.phase:
            self._check(f"before epoch {trainer.epoch + 1}, at the start of a schedule phase")
            self._enter(phase, trainer)

    def after_step(self, trainer: Trainer) -> None:
        if self._first_step.has_come():
            self._check("after the first step")

    def after_epoch(self, trainer: Trainer) -> None:
        self._check(f"after epoch {trainer.epoch}")

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        self._check(f"at the checkpoint of iteration {trainer.iteration}")
        ours["freeze"] = metadata_to_plain(self.plan, self.handle.certificate())

    def after_train(self, trainer: Trainer) -> None:
        self._check("at the end")
        if self.handle.certificate().digests:  # a schedule may have freed everything
            what = "frozen state is" if self.plan.parameters else "statistics of the locked norm layers are"
            trainer.logger.info("Certificate intact: the %s the same as at the start, bit for bit.", what)

    def _enter(self, phase: Phase, trainer: Trainer) -> None:
        """Freeze for ``phase``; parameters that it releases enter the optimizer without state."""
        model, before = unwrap(trainer.model), self.handle
        # freeze first, then release the old freeze: modules that are in both stay frozen in between
        self.handle = freeze(model, phase.plan, rebuilds_ddp=True)
        before.release(rebuilds_ddp=True)
        self.phase, self._certified = phase, self.handle
        groups = [*self.lr_scaled_groups(), *lr_scaled_groups(self.plan, model)]
        optimizer = build_optimizer(model, self.optim_cfg or {}, groups)
        kept, new = carry_state(trainer.optimizer, optimizer)
        trainer.rebuild(optimizer)
        self._first_step.wait_for(optimizer)
        trainer.logger.info("Epoch %d: %s", trainer.epoch + 1, "; ".join(phase.lines()))
        trainer.logger.info(
            "Optimizer state: %d parameter tensors keep theirs, %d start with a fresh one. "
            "Certificate renewed.",
            kept,
            new,
        )
        trainer.logger.info("%s", self._summary())
        self._warn_of_drift(trainer)

    def _warn_of_drift(self, trainer: Trainer) -> None:
        """Log each warning once a run, and the command that prints a list without drift."""
        found = [drift for drift in lint(self.handle.model) if str(drift) not in self._warned]
        for drift in dict.fromkeys(map(str, found)):
            self._warned.add(drift)
            trainer.logger.warning("%s", drift)
        heads = [stage.name for stage in stages(self.handle.model) if stage.has_loss]
        kept = [head for head in heads if any(head in drift.frozen for drift in found)]
        if kept:
            flags = " ".join(f"--keep {head}" for head in kept)
            trainer.logger.warning(
                "`pcdet-freeze suggest --cfg_file FILE %s` prints the list that keeps its outputs", flags
            )

    def _check(self, when: str) -> None:
        """Raise CertificateError on all ranks if frozen state changed on any; a collective call."""
        try:
            self.handle.verify()
        except CertificateError as error:
            raise CertificateError(
                f"Frozen state changed (found {when}). No checkpoint was written with it. Look "
                f"for code other than the optimizer that writes to these tensors.\n{error}"
            ) from error
