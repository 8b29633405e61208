"""MODEL.NOT_TRAIN_IN_MULTI_TASK in a training: freeze before the optimizer is made, prove it to the end."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import nn

from pcdet_freeze.engine.behaviour_hook import BehaviourHook
from pcdet_freeze.engine.first_steps_hook import FirstStepsHook
from pcdet_freeze.engine.hooks import HOOKS, ConfiguredHook
from pcdet_freeze.engine.loop import Trainer
from pcdet_freeze.engine.supplied import check_supplied
from pcdet_freeze.errors import CertificateError, CheckpointError
from pcdet_freeze.freeze import Certificate, FreezeHandle, FreezePlan, compare, freeze
from pcdet_freeze.freeze.dataflow import explain_steps, require_loss
from pcdet_freeze.freeze.lint import lint


@HOOKS.register
class MultiTaskFreezeHook(ConfiguredHook):
    """Holds what the list names, and keeps its certificate.

    The certificate is taken when training starts, and checked after the first step, after each epoch (and so
    after a validation), at every checkpoint, where it is stored, and at the end. A tensor that changed on any
    rank stops all ranks, by name.
    """

    def __init__(self, handle: FreezeHandle) -> None:
        self.handle = handle
        self._first_step_checked = False

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any], model: nn.Module) -> MultiTaskFreezeHook | None:
        """Freeze what ``cfg`` names in ``model``; None where it names nothing.

        Raises FreezeError for a list that cannot be applied, or that leaves no head with a loss.
        """
        plan = FreezePlan.from_cfg(cfg)
        if not plan:
            return None
        hook = cls(freeze(model, plan))
        require_loss(model)
        return hook

    def companions(self) -> Sequence[ConfiguredHook]:
        return FirstStepsHook(self), BehaviourHook(self)

    def check_supplied(self, loaded: Collection[str], rebuild: Callable[[], nn.Module]) -> None:
        check_supplied(self.handle, loaded, rebuild)

    def check_resumed(self, ours: Mapping[str, Any]) -> None:
        """Compare the loaded state with the certificate stored beside it; CertificateError if it differs."""
        changed = compare(Certificate.from_plain(ours["freeze"]["certificate"]), self.handle.certificate())
        if changed:
            raise CertificateError(
                "The frozen state of a checkpoint must be what its own certificate says, but differs in:\n  "
                + "\n  ".join(changed)
                + "\nThe file was changed after it was written: resume from another one with --ckpt."
            )

    def describe(self) -> str:
        notes = [*self.handle.notes, *explain_steps(self.handle.model)]
        return "\n".join([self.handle.summary(), *(f"  note: {note}" for note in notes)])

    def before_train(self, trainer: Trainer) -> None:
        for drift in lint(self.handle.model):
            trainer.logger.warning("%s", drift)
        self.handle.renew()
        self._first_step_checked = False

    def after_step(self, trainer: Trainer) -> None:
        if not self._first_step_checked:
            self._first_step_checked = True
            self._check("after the first step")

    def after_epoch(self, trainer: Trainer) -> None:
        self._check(f"after epoch {trainer.epoch}")

    def at_checkpoint(self, trainer: Trainer, ours: dict[str, Any]) -> None:
        self._check(f"at the checkpoint of iteration {trainer.iteration}")
        ours["freeze"] = {
            "entries": list(self.handle.entries),
            "certificate": self.handle.certificate().to_plain(),
        }

    def after_train(self, trainer: Trainer) -> None:
        self._check("at the end")
        trainer.logger.info("Certificate intact: the frozen state is the same as at the start, bit for bit.")

    def _check(self, when: str) -> None:
        """All ranks hear all verdicts before any raises: nobody is left waiting in a collective call."""
        try:
            self.handle.verify()
        except CertificateError as error:
            raise CertificateError(
                f"Frozen state must not change, but {when} it had. No checkpoint was written with it; look "
                f"for what writes to these tensors besides the optimizer.\n{error}"
            ) from error


def check_same_list(cfg: Mapping[str, Any], ours: Mapping[str, Any] | None) -> None:
    """CheckpointError unless the checkpoint part ``ours`` was written under the list that ``cfg`` names.

    ``ours`` is None for a checkpoint of OpenPCDet, which knows no list.
    """
    now = list(FreezePlan.from_cfg(cfg).entries)
    then = list(((ours or {}).get("freeze") or {}).get("entries", []))
    if now != then:
        raise CheckpointError(
            "A run must go on with the list MODEL.NOT_TRAIN_IN_MULTI_TASK that its checkpoint was written "
            f"with. Checkpoint: {then}; now: {now}. To start a new stage from these weights, give the file "
            "as --pretrained_model and choose another --extra_tag."
        )
