"""Checks of the first steps of a training: they stop it before the first optimizer step that would be wrong.

In a loop of any kind:

```
checks = FirstSteps(logger)
checks.watch(handle, model, optimizer)        # again when one of the three is replaced
for batch in loader:
    loss = model(batch)[0]["loss"]            # the checks run in forward hooks of the model ...
    loss.backward()
    optimizer.step()                          # ... and in a step pre-hook of the optimizer
checks.finish()
```
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.optim import Optimizer

from pcdet_freeze.freezing.checks.determinism import DeterminismCheck
from pcdet_freeze.freezing.checks.loss_reachability import (
    ReachabilityCheck,
    unlabelled_heads,
    unreached_message,
    without_gradient,
)
from pcdet_freeze.freezing.checks.optimizer_audit import STEPS, GradientAudit, check_groups
from pcdet_freeze.freezing.checks.raise_on_all_ranks import raise_on_all_ranks
from pcdet_freeze.freezing.handle import FreezeHandle
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.loader_threads import wait_for_loader_threads
from pcdet_freeze.utils.memory import free_cached_memory, is_memory_error
from pcdet_freeze.utils.picklable_hook import PicklableHook
from pcdet_freeze.utils.step_hooks import is_skipped, keep_step_hooks


class Watched(NamedTuple):
    """What is checked."""

    handle: FreezeHandle
    model: nn.Module
    """as the loop calls it, in its wrappers"""
    optimizer: Optimizer | None


class FirstSteps:
    """Checks the first training forward and the first optimizer steps of a model that is frozen.

    * The first forward: frozen modules are deterministic and keep their state (:mod:`.determinism`, H3), and
      the loss depends on each trainable parameter (:mod:`.loss_reachability`, H11). All ranks exchange what
      they found between forward and backward, and all raise.
    * Each of the first 20 optimizer steps: the gradients (:mod:`.optimizer_audit`, P5).

    H11 and P5 start again whenever :meth:`watch` gets another model, optimizer or handle; H3 is checked once.

    The forward must return a tuple whose first item is a dict with the key ``loss``, as OpenPCDet's detectors
    do. For any other output H11 is checked after the first backward, from the gradients.
    """

    def __init__(self, logger: logging.Logger) -> None:
        self.logger = logger
        self._watched: Watched | None = None
        self._model_hooks: list[Any] = []
        self._optimizer_hooks: list[Any] = []
        self._determinism_checked = False
        self._determinism: DeterminismCheck | None = None
        self._reachability: ReachabilityCheck | None = None
        self._audit: GradientAudit | None = None
        self._in_step = False
        self._check_gradients = False

    def watch(
        self,
        handle: FreezeHandle,
        model: nn.Module,
        optimizer: Optimizer | None,
        left_out: Collection[str] = (),
    ) -> None:
        """Check the next forward of ``model`` and the next steps of ``optimizer``.

        A second call with the same arguments does nothing.

        Args:
            handle: the freeze of ``model``.
            model: as the loop calls it, in its wrappers.
            optimizer: None where it is not known yet: then only the forward is checked.
            left_out: names of trainable parameters that are in no group on purpose.

        Raises:
            FreezeError: a trainable parameter is in no optimizer group, or in two (P5).
        """
        watched = Watched(handle, model, optimizer)
        if self._watched is not None and all(
            old is new for old, new in zip(self._watched, watched, strict=True)
        ):
            return
        self.stop()
        if optimizer is not None:
            check_groups(model, optimizer, left_out)
        self._watched = watched
        self._determinism = None if self._determinism_checked else DeterminismCheck(handle)
        if handle.plan.parameters:
            self._reachability = ReachabilityCheck(model)
            self._audit_steps(watched)
        self._model_hooks += [
            model.register_forward_pre_hook(PicklableHook(lambda module, _: self._before_forward(module))),
            model.register_forward_hook(PicklableHook(self._after_forward), with_kwargs=True),
        ]

    def _audit_steps(self, watched: Watched) -> None:
        handle, model, optimizer = watched
        if optimizer is None:
            return
        self._audit = GradientAudit(model, handle.parameters)
        keep_step_hooks(optimizer)
        self._optimizer_hooks += [
            optimizer.register_step_pre_hook(lambda stepped, *_: self._before_step(model, stepped)),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def finish(self) -> None:
        """End the checks, after a training of fewer than 20 steps too. Raises FreezeError (P5)."""
        audit = self._audit
        if audit is not None and not audit.done and audit.steps:
            self._conclude(audit)
        self.stop()

    def stop(self) -> None:
        """Remove all hooks from the model and the optimizer, after an interrupted forward too."""
        _remove(self._model_hooks)
        _remove(self._optimizer_hooks)
        self.end_forward()
        self._determinism, self._reachability, self._audit = None, None, None
        self._watched, self._in_step, self._check_gradients = None, False, False

    def end_forward(self) -> None:
        """Remove the hooks that a forward that raised has left on modules; the next one is checked again."""
        for check in self._forward_checks():
            check.end()

    def _is_training_forward(self, model: nn.Module) -> bool:
        """Not one of an evaluation, nor of a copy of the model."""
        return model.training and self._watched is not None and model is self._watched.model

    def _forward_checks(self) -> list[DeterminismCheck | ReachabilityCheck]:
        return [check for check in (self._determinism, self._reachability) if check is not None]

    def _before_forward(self, model: nn.Module) -> None:
        self.end_forward()  # torch calls no forward hook after an exception
        if not self._is_training_forward(model) or not self._forward_checks():
            return
        if self._determinism is not None:
            if not wait_for_loader_threads():
                self.logger.warning(_LOADER_THREAD)
            # without memory it is off, but stays: all ranks call the same collectives in _after_forward
            self._determinism.begin()
        if self._reachability is not None:
            self._reachability.begin()

    def _after_forward(self, model: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self._is_training_forward(model) or not self._forward_checks():
            return
        self.end_forward()
        batch = next(iter((*args, *kwargs.values())), None)
        reachability, self._reachability = self._reachability, None
        not_deterministic = self._not_deterministic()
        unreached = [] if reachability is None else self._unreached(reachability, model, batch, output)
        raise_on_all_ranks(not_deterministic, _NOT_DETERMINISTIC)
        if not self._forward_checks():
            _remove(self._model_hooks)
        raise_on_all_ranks(unreached, _UNREACHED)

    def _not_deterministic(self) -> list[str]:
        check, self._determinism, self._determinism_checked = self._determinism, None, True
        if check is None:
            return []
        findings: list[str] = []
        self._in_memory(_DETERMINISM, lambda: findings.extend(check.findings()))
        for note in check.notes:
            self.logger.warning("%s.", note)
        return findings

    def _unreached(self, check: ReachabilityCheck, model: nn.Module, batch: Any, output: Any) -> list[str]:
        """One line for each trainable module that the loss of the first forward does not depend on."""
        loss = _loss_of(output)
        unreached: list[str] = []
        if loss is not None:
            self._in_memory(_REACHABILITY, lambda: unreached.extend(check.unreached(loss)))
        self._check_gradients = any(distributed.gather(check.opaque or loss is None))
        if not unreached or loss is None:
            return []
        heads = unlabelled_heads(model, batch) if isinstance(batch, Mapping) else []
        if _may_be_due_to_batch(heads, loss):
            self.logger.info(_WAITING, ", ".join(heads))
            self._reachability = ReachabilityCheck(model)
            return []
        return [*_unreached_messages(model, unreached), *map(_UNLABELLED.format, heads)]

    def _in_memory(self, check: str, run: Callable[[], object]) -> None:
        """Run a part of a check; where memory runs out, warn."""
        try:
            run()
        except (MemoryError, RuntimeError) as error:
            if not is_memory_error(error):
                raise
            free_cached_memory()
            self.logger.warning(_NO_MEMORY, check, type(error).__name__, error)

    def _before_step(self, model: nn.Module, optimizer: Optimizer) -> None:
        audit = self._audit
        # an optimizer whose step() calls the step() of its parent class runs the hooks of both
        if audit is None or audit.done or self._in_step or is_skipped(optimizer):
            return
        if self._check_gradients:
            self._check_gradients = False
            unreached = _unreached_messages(model, without_gradient(model))
            raise_on_all_ranks(unreached, _UNREACHED)
        found: list[str] = []
        self._in_memory(_AUDIT, lambda: found.extend(audit.look()))
        raise_on_all_ranks(found, _GRADIENTS)
        if audit.steps == STEPS:
            self._conclude(audit)
        self._in_step = True

    def _after_step(self) -> None:
        self._in_step = False

    def _conclude(self, audit: GradientAudit) -> None:
        faults, notes = audit.verdict()
        _remove(self._optimizer_hooks)
        raise_on_all_ranks(faults, _GRADIENTS)
        for note in notes:
            self.logger.info("note: %s", note)


def _remove(hooks: list[Any]) -> None:
    while hooks:
        hooks.pop().remove()


def _loss_of(output: Any) -> Tensor | None:
    """The loss in the output of a detector; None where there is none."""
    first = output[0] if isinstance(output, tuple) and output else None
    loss = first.get("loss") if isinstance(first, Mapping) else None
    return loss.mean() if isinstance(loss, Tensor) else None


def _unreached_messages(model: nn.Module, parts: Sequence[str]) -> list[str]:
    return [unreached_message(part, model) for part in parts]


def _may_be_due_to_batch(unlabelled: Sequence[str], loss: Tensor) -> bool:
    """Whether the loss may reach so little only because the batch has no labels; the next batch then decides.

    Never with several processes: DDP would wait for the missing gradients in the backward of this batch.
    """
    # a loss without any graph: the training loop raises an error of its own
    return not distributed.is_distributed() and (bool(unlabelled) or not loss.requires_grad)


_DETERMINISM = "determinism check of frozen modules (H3)"
_REACHABILITY = "check that the loss reaches all trainable parameters (H11)"
_AUDIT = "audit of the gradients (P5)"
_NO_MEMORY = "Memory ran out in the %s (%s: %s), so it is left out. The training goes on."
_WAITING = "This batch has no labels for %s: loss reachability is checked with the next batch."
_UNLABELLED = (
    "(The batch has no labels for {0}: with several processes its loss must depend on its predictions even "
    "then, for example by adding 0 * predictions.sum().)"
)
_LOADER_THREAD = (
    "A thread of this process is still loading batches. Random numbers that it draws during the determinism "
    "check of the first step differ from those of a run without the check."
)
_NOT_DETERMINISTIC = (
    "A frozen module must be deterministic and must not change its buffers, in train mode too. Found in the "
    "first forward:",
    "No optimizer step was made.",
)
_UNREACHED = (
    "Every trainable parameter must be reached by a loss, but no loss depends on the following. It would "
    "learn nothing, its running statistics would drift, and DistributedDataParallel would wait for its "
    "gradients. Add it to MODEL.NOT_TRAIN_IN_MULTI_TASK:",
    "No optimizer step was made.",
)
_GRADIENTS = (
    "Trainable parameters must get gradients, and frozen ones must get none, but:",
    "Look for code of the model that sets requires_grad, or add a module that no loss needs to "
    "MODEL.NOT_TRAIN_IN_MULTI_TASK.",
)
