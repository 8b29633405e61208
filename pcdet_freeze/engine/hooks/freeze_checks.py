"""Hooks that run the checks of :mod:`pcdet_freeze.freezing.checks` in a training."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from pcdet_freeze.datasets.loader import next_batch
from pcdet_freeze.engine.hooks.base import ConfiguredHook, Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError
from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.freezing.checks.first_steps import FirstSteps
from pcdet_freeze.freezing.checks.optimizer_audit import check_groups
from pcdet_freeze.freezing.checks.output_drift import OutputDrift, compare_outputs, named_tensors
from pcdet_freeze.freezing.data_flow.drift_lint import live_inputs
from pcdet_freeze.freezing.verification.certificate import frozen_tensors
from pcdet_freeze.utils.distributed import agree, unwrap
from pcdet_freeze.utils.host_copies import to_host
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.utils.tensors import clone_detached


class OptimizerGroupsHook(Hook):
    """Checks the optimizer's param groups when training starts, frozen modules or not (P5)."""

    def before_train(self, trainer: Trainer) -> None:
        check_groups(trainer.model, trainer.optimizer)


class HasHandle(Protocol):
    """The hook that froze the model. Each phase of a schedule has a handle of its own."""

    handle: FreezeHandle


class FreezeChecksHook(ConfiguredHook):
    """Runs :class:`~pcdet_freeze.freezing.checks.first_steps.FirstSteps` in the trainer.

    A phase of the schedule replaces handle, model and optimizer; they are then watched from its first step.
    """

    def __init__(self, owner: HasHandle) -> None:
        self.owner = owner
        self._checks: FirstSteps | None = None

    def describe(self) -> str:
        return ""

    def before_train(self, trainer: Trainer) -> None:
        if self._checks is not None:
            self._checks.stop()
        self._checks = FirstSteps(trainer.logger)
        self._checks.watch(self.owner.handle, trainer.model, trainer.optimizer)

    def before_epoch(self, trainer: Trainer) -> None:
        if self._checks is not None:
            self._checks.watch(self.owner.handle, trainer.model, trainer.optimizer)

    def after_train(self, trainer: Trainer) -> None:
        if self._checks is not None:
            self._checks.finish()

    def on_exception(self, trainer: Trainer) -> None:
        if self._checks is not None:
            self._checks.stop()


class OutputDriftHook(ConfiguredHook):
    """Compares, at the end, the outputs of frozen modules with those at the start of this process (P2).

    Tensors that are not frozen are copied to the CPU at the start; the certificate proves that the others are
    equal. The batch is the first of the test data, or the first training batch of a run without test data.
    Outputs that must be identical and are not raise CertificateError on all ranks; drift is a number in the
    log and in ``run.json`` (``trainer.results["output_drift"]``).
    """

    def __init__(self, owner: HasHandle) -> None:
        self.owner = owner
        self._start: dict[str, Tensor] = {}
        self._began_at = 0
        self._test_loader: Any = None
        self._batch: dict[str, Any] | None = None
        self._batch_hook: Any = None

    def take_test_data(self, loader: Any) -> None:
        self._test_loader = loader

    def describe(self) -> str:
        return ""

    def before_train(self, trainer: Trainer) -> None:
        if not self._start:  # an interrupted run that continues is compared with its own start
            self._batch, self._began_at = None, trainer.iteration
        if self._is_needed():
            self._keep_start()
            if self._test_loader is None and self._batch is None:
                self._batch_hook = unwrap(trainer.model).register_forward_pre_hook(
                    PicklableHook(self._keep_batch)
                )

    def before_epoch(self, trainer: Trainer) -> None:
        if self._start:
            self._keep_start()  # parameters that a schedule adds now still have the values of the start

    def after_train(self, trainer: Trainer) -> None:
        if self._batch_hook is not None:
            self._batch_hook.remove()
        batch = self._pick_batch(trainer) if self._start and self._is_needed() else None
        if self.owner.handle.plan.parameters and not self._is_needed():
            trainer.logger.info(
                "Output drift: no module of the detector is fully frozen: there is no output to compare."
            )
        drifts = [] if batch is None else compare_outputs(trainer.model, self._start, batch)
        where = "first test batch" if self._test_loader is not None else "first training batch"
        for drift in drifts:
            trainer.logger.info(
                "Output drift on the %s, iteration %d against %d: %s",
                where,
                trainer.iteration,
                self._began_at,
                drift,
            )
        trainer.results["output_drift"] = {drift.module: drift.to_plain() for drift in drifts}
        self._start, self._batch = {}, None
        _raise_changed(drifts)

    def on_exception(self, trainer: Trainer) -> None:
        if self._batch_hook is not None:
            self._batch_hook.remove()

    def _is_needed(self) -> bool:
        return bool(self.owner.handle.plan.parameters and live_inputs(self.owner.handle.model))

    def _keep_start(self) -> None:
        handle = self.owner.handle
        request = handle.request
        frozen = (
            {id(t) for _, t, _ in frozen_tensors(handle.model, request)} if request is not None else set()
        )
        frozen |= {id(parameter) for parameter in handle.parameters()}
        tensors = named_tensors(handle.model)
        new = {name: t for name, t in tensors.items() if id(t) not in frozen and name not in self._start}
        self._start |= to_host(new, copy=True)

    def _keep_batch(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        if model.training:
            self._batch = clone_detached(args[0], "cpu")
            self._batch_hook.remove()

    def _pick_batch(self, trainer: Trainer) -> dict[str, Any] | None:
        if self._test_loader is None:
            return None if self._batch is None else clone_detached(self._batch, trainer.device)
        with untouched_rng():
            set_epoch = getattr(getattr(self._test_loader, "sampler", None), "set_epoch", None)
            if set_epoch is not None:
                set_epoch(0)
            batch: dict[str, Any] = next_batch(iter(self._test_loader), 0, len(self._test_loader))
        if trainer.move is not None:
            trainer.move(batch, trainer.device)
        return batch


def _raise_changed(drifts: list[OutputDrift]) -> None:
    changed = agree([str(drift) for drift in drifts if drift.kind == "CHANGED"])
    if changed:
        raise CertificateError(
            "A frozen module whose inputs are all frozen must give the outputs of the start, bit for bit, "
            "but:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nIts tensors are equal: look for code that reads something else (a step counter, a key that "
            "the module does not declare in 'reads')."
        )
