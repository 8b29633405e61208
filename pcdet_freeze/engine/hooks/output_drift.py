"""The behaviour proof in a training: keep the start, compare with it at the end."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pcdet_freeze.engine.hooks.base import ConfiguredHook
from pcdet_freeze.engine.hooks.first_steps import HasHandle
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError
from pcdet_freeze.freezing.certificate import frozen_tensors
from pcdet_freeze.freezing.checks.output_drift import Verdict, named_tensors, prove
from pcdet_freeze.freezing.drift_lint import live_inputs
from pcdet_freeze.utils.agreement import agree
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.utils.tensors import fresh


class OutputDriftHook(ConfiguredHook):
    """Compares, at the end, what frozen modules compute with what they computed when this process began.

    Of the start, the tensors that are not frozen are kept, on the CPU; the certificate says that the others
    are the same. The batch is the first one of the test data, where the run has any, else the first that was
    trained on. Outputs that must be identical and are not raise CertificateError on all ranks; drift is a
    number in the log and in ``run.json`` (``trainer.results``).
    """

    def __init__(self, owner: HasHandle) -> None:
        self.owner = owner
        self._start: dict[str, Tensor] = {}
        self._began_at = 0
        self._test_loader: Any = None
        self._batch: dict[str, Any] | None = None
        self._catcher: Any = None

    def take_test_data(self, loader: Any) -> None:
        self._test_loader = loader

    def describe(self) -> str:
        return ""

    def before_train(self, trainer: Trainer) -> None:
        self._start, self._batch, self._began_at = {}, None, trainer.iteration
        if self._is_needed():
            self._keep_start()
            if self._test_loader is None:
                self._catcher = unwrap(trainer.model).register_forward_pre_hook(PicklableHook(self._catch))

    def before_epoch(self, trainer: Trainer) -> None:
        if self._start:
            self._keep_start()  # what a schedule lets train from now on is still as it was at the start

    def after_train(self, trainer: Trainer) -> None:
        if self._catcher is not None:
            self._catcher.remove()
        batch = self._a_batch(trainer) if self._start and self._is_needed() else None
        if self.owner.handle.plan.parameters and not self._is_needed():
            trainer.logger.info("Behaviour: no module of the detector is frozen whole: no output to compare.")
        verdicts = [] if batch is None else prove(trainer.model, self._start, batch)
        where = "first test batch" if self._test_loader is not None else "first training batch"
        for verdict in verdicts:
            trainer.logger.info(
                "Behaviour on the %s, iteration %d against %d: %s",
                where,
                trainer.iteration,
                self._began_at,
                verdict,
            )
        trainer.results["behaviour"] = {verdict.module: verdict.to_plain() for verdict in verdicts}
        self._start, self._batch = {}, None
        _raise_changed(verdicts)

    def _is_needed(self) -> bool:
        return bool(self.owner.handle.plan.parameters and live_inputs(self.owner.handle.model))

    def _keep_start(self) -> None:
        handle = self.owner.handle
        request = handle.request
        still = {id(t) for _, t, _ in frozen_tensors(handle.model, request)} if request is not None else set()
        still |= {id(parameter) for parameter in handle.parameters()}
        for name, tensor in named_tensors(handle.model).items():
            if id(tensor) not in still and name not in self._start:
                self._start[name] = tensor.detach().to("cpu", copy=True)

    def _catch(self, model: nn.Module, args: tuple[Any, ...]) -> None:
        if model.training:
            self._batch = fresh(args[0], "cpu")
            self._catcher.remove()

    def _a_batch(self, trainer: Trainer) -> dict[str, Any] | None:
        if self._test_loader is None:
            return None if self._batch is None else fresh(self._batch, trainer.device)
        with untouched_rng():
            set_epoch = getattr(getattr(self._test_loader, "sampler", None), "set_epoch", None)
            if set_epoch is not None:
                set_epoch(0)
            batch: dict[str, Any] | None = next(iter(self._test_loader), None)
        if batch is not None and trainer.move is not None:
            trainer.move(batch, trainer.device)
        return batch


def _raise_changed(verdicts: list[Verdict]) -> None:
    changed = agree([str(verdict) for verdict in verdicts if verdict.kind == "CHANGED"])
    if changed:
        raise CertificateError(
            "Where all that a task depends on is frozen, its outputs must be those of the start, bit for "
            "bit, but:\n"
            + "\n".join(f"  {line}" for line in changed)
            + "\nIts tensors are the same: look for code that reads something else (a step counter, a key "
            "that the module does not declare in 'reads')."
        )
