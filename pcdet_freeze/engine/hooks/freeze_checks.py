"""The checks of a training under a freeze list, as hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor, nn

from pcdet_freeze.engine.hooks.base import ConfiguredHook, Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import CertificateError, FreezeError
from pcdet_freeze.freezing import FreezeHandle
from pcdet_freeze.freezing.certificate import frozen_tensors
from pcdet_freeze.freezing.checks.determinism import FirstForward
from pcdet_freeze.freezing.checks.loss_reachability import (
    LossGraph,
    unlabelled_heads,
    unreached_message,
    without_gradient,
)
from pcdet_freeze.freezing.checks.optimizer_audit import STEPS, GradientAudit, check_groups
from pcdet_freeze.freezing.checks.output_drift import Verdict, named_tensors, prove
from pcdet_freeze.freezing.drift_lint import live_inputs
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.distributed import agree, unwrap
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.rng import untouched_rng
from pcdet_freeze.utils.tensors import fresh


class OptimizerGroupsHook(Hook):
    """Checks the groups when training starts, whether anything is frozen or not."""

    def before_train(self, trainer: Trainer) -> None:
        check_groups(trainer.model, trainer.optimizer)


class HasHandle(Protocol):
    """Who froze the model. The handle may become another one in the course of a run."""

    handle: FreezeHandle


class FreezeChecksHook(ConfiguredHook):
    """Stops a training before its first optimizer step where the freeze cannot hold, or leaves loose ends.

    * in the first forward: frozen modules compute fixed functions (:mod:`.replay`, H3), and the loss reaches
      whatever trains (:mod:`.unreached`, H11). Ranks agree between forward and backward.
    * before each of the first 20 optimizer steps: the gradients (:mod:`.audit`, P5).

    Where another optimizer has taken over (a phase of a schedule), H11 and P5 begin anew.
    """

    def __init__(self, owner: HasHandle) -> None:
        self.owner = owner
        self._watched: tuple[nn.Module, Any] | None = None
        self._on_model: list[Any] = []
        self._on_optimizer: list[Any] = []
        self._has_run = False
        self._forward: FirstForward | None = None
        self._graph: LossGraph | None = None
        self._audit: GradientAudit | None = None
        self._looked_at = -1
        self._ask_gradients = False

    def describe(self) -> str:
        return ""

    def before_train(self, trainer: Trainer) -> None:
        self._has_run = False
        self._watch(trainer)

    def before_epoch(self, trainer: Trainer) -> None:
        model, optimizer = self._watched or (None, None)
        if model is not trainer.model or optimizer is not trainer.optimizer:
            if self._forward is not None:  # resumed where a phase begins
                self._forward = FirstForward(self.owner.handle)
            self._watch(trainer)

    def after_train(self, trainer: Trainer) -> None:
        if self._audit is not None and not self._audit.done and self._audit.steps:
            self._judge(trainer, self._audit)
        self.stop_watching()

    def _watch(self, trainer: Trainer) -> None:
        self.stop_watching()
        model, optimizer = trainer.model, trainer.optimizer
        self._watched, self._looked_at = (model, optimizer), -1
        check_groups(model, optimizer)
        self._forward = None if self._has_run else FirstForward(self.owner.handle)
        if self.owner.handle.plan.parameters:
            self._graph = LossGraph(model)
            self._audit = GradientAudit(model, lambda: self.owner.handle.parameters())
            watch = optimizer.register_step_pre_hook(lambda *_: self._before_step(trainer))
            self._on_optimizer.append(watch)
        self._on_model += [
            model.register_forward_pre_hook(PicklableHook(lambda module, _: self._begin(module))),
            model.register_forward_hook(PicklableHook(lambda *given: self._end(trainer, *given))),
        ]

    def stop_watching(self) -> None:
        """Take everything off model and optimizer that was put there to look."""
        _remove(self._on_model)
        _remove(self._on_optimizer)
        self._forward, self._graph, self._audit = None, None, None

    def _is_step(self, model: nn.Module) -> bool:
        """Whether this forward is one of the trainer's: not an evaluation, not of a copy."""
        return model.training and self._watched is not None and model is self._watched[0]

    def _parts(self) -> list[FirstForward | LossGraph]:
        return [part for part in (self._forward, self._graph) if part is not None]

    def _begin(self, model: nn.Module) -> None:
        for part in self._parts():
            part.end()  # torch calls no forward hook after KeyboardInterrupt
        if self._is_step(model):
            for part in self._parts():
                part.begin()

    def _end(self, trainer: Trainer, model: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._is_step(model) or not self._parts():
            return
        for part in self._parts():
            part.end()
        graph, self._graph = self._graph, None
        lost = [] if graph is None else graph.lost(output[0]["loss"].mean())
        self._ask_gradients = any(distributed.gather(graph is not None and graph.opaque))
        unsteady = self._unsteady(trainer)
        heads = unlabelled_heads(trainer.model, args[0]) if lost else []
        if lost and _may_wait(heads, output[0]["loss"]):
            trainer.logger.info(_WAITING, ", ".join(heads))
            self._graph, lost = LossGraph(model), []
        _raise_all(unsteady, _UNSTEADY)
        if not self._parts():
            _remove(self._on_model)  # the model can be pickled again
        hints = [_UNLABELLED.format(head) for head in heads if lost]
        _raise_all([*_unreached_messages(trainer.model, lost), *hints], _LOST)

    def _unsteady(self, trainer: Trainer) -> list[str]:
        watched, self._forward, self._has_run = self._forward, None, True
        found = [] if watched is None else watched.findings()
        for note in [] if watched is None else watched.notes:
            trainer.logger.warning("%s.", note)
        return found

    def _before_step(self, trainer: Trainer) -> None:
        audit = self._audit
        # a subclass that calls its parent's step calls its hooks twice
        if audit is None or audit.done or self._looked_at == trainer.iteration:
            return
        self._looked_at = trainer.iteration
        if self._ask_gradients:
            self._ask_gradients = False
            _raise_all(_unreached_messages(trainer.model, without_gradient(trainer.model)), _LOST)
        _raise_all(audit.look(), _GRADIENTS)
        if audit.steps == STEPS:
            self._judge(trainer, audit)

    def _judge(self, trainer: Trainer, audit: GradientAudit) -> None:
        faults, notes = audit.verdict()
        _remove(self._on_optimizer)
        _raise_all(faults, _GRADIENTS)
        for note in notes:
            trainer.logger.info("note: %s", note)


def _remove(handles: list[Any]) -> None:
    while handles:
        handles.pop().remove()


def _unreached_messages(model: nn.Module, lost: Sequence[str]) -> list[str]:
    return [unreached_message(part, model) for part in lost]


def _may_wait(unlabelled: Sequence[str], loss: Tensor) -> bool:
    """Whether a batch without labels may be why the loss reaches so little: then the next batch decides.

    Never with many processes: there the backward of this very batch would wait for ever.
    """
    # for a loss without any graph the loop has an error of its own
    return not distributed.is_distributed() and (bool(unlabelled) or not loss.requires_grad)


_WAITING = "This batch has no labels for %s: the next one tells whether a loss reaches all that trains."
_UNLABELLED = (
    "(The batch has no labels for {0}: with many processes its loss must even then depend on what it "
    "predicts, for example by adding 0 * predictions.sum().)"
)
_UNSTEADY = (
    "A frozen module must compute a fixed function of its input and keep its state, also in train mode. "
    "Found in the first forward:",
    "No optimizer step was made.",
)
_LOST = (
    "Whatever trains must be reached by a loss that is left, but no loss reaches what follows: it would "
    "learn nothing, its statistics would drift, and several processes would wait for its gradients for ever.",
    "(The list is MODEL.NOT_TRAIN_IN_MULTI_TASK.) No optimizer step was made.",
)
_GRADIENTS = (
    "What trains must get gradients, and what is frozen none, but:",
    "Look for what sets requires_grad in the model's own code, or add a module that no loss needs to "
    "MODEL.NOT_TRAIN_IN_MULTI_TASK.",
)


def _raise_all(lines: Sequence[str], message: tuple[str, str]) -> None:
    """Raise FreezeError on every rank if any rank has found something; each must call this."""
    found = distributed.gather(list(lines))
    merged: dict[str, list[int]] = {}
    for rank, several in enumerate(found):
        for line in several:
            merged.setdefault(line, []).append(rank)
    if merged:
        told = [
            f"  {line}" if len(ranks) == len(found) else f"  {line} (rank {', '.join(map(str, ranks))})"
            for line, ranks in merged.items()
        ]
        raise FreezeError("\n".join([message[0], *told, message[1]]))


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
