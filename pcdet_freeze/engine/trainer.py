"""The training loop. :meth:`Trainer.run` is all of it; what happens around it is in hooks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from pcdet_freeze.datasets.loader import EpochOrder, Loader, next_batch, shut_down_workers
from pcdet_freeze.engine.accumulation import count_ahead, forward_backward, merged, next_batches
from pcdet_freeze.engine.finished import nothing_left
from pcdet_freeze.engine.finite_guard import FiniteGuard, StepRecord, count_steps, verdict
from pcdet_freeze.engine.finite_guard import NonFiniteLossError as NonFiniteLossError
from pcdet_freeze.engine.hooks.base import Hook, call_on_exception
from pcdet_freeze.engine.optim.gradient_norms import GradientNorms
from pcdet_freeze.engine.optim.gradient_norms import clip_norm_of as clip_norm_of
from pcdet_freeze.engine.optim.loss_scaler import new_scaler, without_pending_step
from pcdet_freeze.engine.optim.lr_schedule import Schedule
from pcdet_freeze.errors import DataError, TrainingError
from pcdet_freeze.models.loss_normalization import LossNormalization
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_rng_state, untouched_rng
from pcdet_freeze.utils.stop_iteration import raised_in

Batch = dict[str, Any]


class Trainer:
    """Trains ``model`` on ``loader``; calls ``hooks`` in list order (:class:`.hooks.base.Hook`).

    The model is called as ``model(batch)`` and returns ``({'loss': loss}, tb_dict, disp_dict)``.

    Args:
        epochs: number of epochs, those before a resume included.
        max_iters: number of iterations after which the run ends, those before a resume included; None: the
            end of the last epoch.
        sampler: gets ``set_epoch(epoch, start_iter)`` before each epoch. Without one, a run that continues in
            the middle of an epoch draws and drops the first batches.
        move: ``move(batch, device)`` moves a batch to the device in place.
        accumulate: batches of the loader in one iteration; the last one of an epoch may have fewer.
        guard: what happens to a step that is not finite; default: an error.

    Attributes:
        epoch: finished epochs.
        offset: iterations done in the current epoch.
        iteration: iterations done in all.
        stopped: set it to True to end the run after the current step.
        in_epoch: whether steps run, and not the hooks before, between and after the epochs.
        loss, grad_norm, lr, tb_dict, disp_dict, batch: of the last iteration. Reading ``loss`` or
            ``grad_norm`` waits for the device; ``loss_on_device`` does not.
        seconds: of the last iteration: data, forward, batch.
        averaged: the model with averaged weights (OPTIMIZATION.EMA), which evaluations use.
        results: plain data from hooks for ``run.json``.
        resumed: what hooks stored in the checkpoint that the run resumed from.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        loader: Loader,
        *,
        epochs: int,
        max_iters: int | None = None,
        hooks: Sequence[Hook] = (),
        sampler: EpochOrder | None = None,
        device: torch.device | None = None,
        clip_norm: float | None = None,
        use_amp: bool = False,
        move: Callable[[Batch, torch.device], object] | None = None,
        accumulate: int = 1,
        guard: FiniteGuard | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.loader, self.sampler, self.hooks = loader, sampler, list(hooks)
        self.epochs, self.max_iters = epochs, max_iters
        self.device, self.clip_norm, self.use_amp = device or torch.device("cpu"), clip_norm, use_amp
        self.move, self.logger = move, logger or logging.getLogger("pcdet_freeze")
        self.accumulate, self.guard = accumulate, guard or FiniteGuard()
        self.scaler = new_scaler(self.device, use_amp and self.device.type == "cuda")
        self.epoch, self.offset, self.iteration, self.stopped, self.in_epoch = 0, 0, 0, False, False
        self.loss_on_device: Tensor | float = math.nan
        self._grad_norm: Tensor | float = math.nan
        self.lr, self._begin = math.nan, perf_counter()
        self.tb_dict: dict[str, Any] = {}
        self.disp_dict: dict[str, Any] = {}
        self.batch: Batch = {}
        self.averaged: nn.Module | None = None
        self.results: dict[str, Any] = {}
        self.resumed: Mapping[str, Any] = {}
        self.seconds = {"data": 0.0, "forward": 0.0, "batch": 0.0}
        self.resumed_rng: dict[str, Any] | None = None
        self.epoch_length, self.micro_batch = math.ceil(len(loader) / accumulate), 0
        if self.epoch_length == 0:
            raise DataError(
                "The loader must give at least one batch an epoch, but gives none. "
                "Use a smaller --batch_size, or look for the missing frames."
            )

    def run(self) -> None:
        """Train from the current position to the end of the run, or until a hook sets ``stopped``.

        After an error or Ctrl-C call it again to continue: the interrupted iteration is repeated on the same
        samples. (Running statistics of trainable norm layers may have seen them before.)

        Raises:
            TrainingError: user code raised StopIteration, or the loss has no graph.
            DataError: the loader stopped before the end of the epoch.
            NonFiniteLossError: the loss or a gradient is NaN or infinite.
        """
        self.stopped = self.in_epoch = False
        self.scaler = without_pending_step(self.scaler, self.device)
        if not self._has_more:
            text = nothing_left(self.epoch, self.epochs, self.iteration, self.max_iters)
            self.logger.warning("%s", text)
        try:
            self.settle()
            self._loop()
        except BaseException as error:
            call_on_exception(self)
            if isinstance(error, StopIteration):
                raise TrainingError(_STOP_ITERATION.format(raised_in(error))) from error
            raise

    def _loop(self) -> None:
        for hook in self.hooks:
            hook.before_train(self)
        state, self.resumed_rng = self.resumed_rng, None
        if state is not None:
            set_rng_state(state)
        while self._has_more:
            for hook in self.hooks:
                hook.before_epoch(self)
            self.in_epoch = True
            with self._open_loader() as batches:
                while self.offset < self.epoch_length and not self._must_stop:
                    self.step(*self._load_batches(batches))
                    for hook in self.hooks:
                        hook.after_step(self)
            self.settle()
            self.in_epoch = False
            if self.offset >= self.epoch_length:
                self.epoch, self.offset = self.epoch + 1, 0
                distributed.share_buffers(self.model)
                for hook in self.hooks:
                    hook.after_epoch(self)
        for hook in self.hooks:
            hook.after_train(self)

    def step(self, *batches: Batch) -> None:
        """Run one iteration: forward and backward of each of ``batches``, clipping, optimizer step."""
        self.batch = merged(batches)
        # in every iteration, as OpenPCDet's loop does: a hook or an evaluation may have called eval()
        self.model.train()
        self.lr = self.schedule.apply(self.optimizer, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.begin(self.model)
        with self._autocast():
            count_ahead(self.model, batches)
        begin = partial(setattr, self, "micro_batch")
        result = forward_backward(self.model, batches, self.scaler.scale, self._autocast, begin)
        self.loss_on_device, self.tb_dict, self.disp_dict = result.loss, result.tb_dict, result.disp_dict
        self.seconds["forward"] = result.seconds
        self.scaler.unscale_(self.optimizer)
        self._update()
        # the counters follow the optimizer step, so that an interrupted iteration does not count
        self._count_steps(1)
        self.scaler.update()
        self.seconds["batch"] = perf_counter() - self._begin

    def settle(self) -> None:
        """Read the verdict of the last step, where it is read one step late (:mod:`.finite_guard`)."""
        with self._back_to_failed_step():
            self.guard.settle(self)
        if self.guard.skipped:
            self.results["skipped_steps"] = self.guard.skipped

    @property
    def loss(self) -> float:
        """Loss of the last iteration; waits for the device."""
        self.loss_on_device = float(self.loss_on_device)
        return self.loss_on_device

    @property
    def grad_norm(self) -> float:
        """Norm of the gradients of the last iteration before they were clipped; waits for the device."""
        self._grad_norm = float(self._grad_norm)
        return self._grad_norm

    @property
    def batches_begun(self) -> int:
        """Batches of the loader that the current epoch has had, without the present one."""
        return self.offset * self.accumulate + self.micro_batch

    @property
    def epoch_number(self) -> int:
        """1-based number of the epoch that the last iteration belongs to; 0 before the first."""
        return self.epoch + (1 if self.offset else 0)

    @property
    def iterations_left(self) -> int:
        """Iterations to the end of the last epoch, or to ``max_iters`` where that comes first."""
        left = (self.epochs - self.epoch) * self.epoch_length - self.offset
        if self.max_iters is not None:
            left = min(left, self.max_iters - self.iteration)
        return max(left, 0)

    @property
    def _must_stop(self) -> bool:
        return self.stopped or self.iterations_left == 0

    @property
    def _has_more(self) -> bool:
        """Whether an epoch is left to train, to continue or, after all of its steps, to finish."""
        return self.epoch < self.epochs and (self.offset >= self.epoch_length or not self._must_stop)

    def rebuild(self, optimizer: torch.optim.Optimizer) -> None:
        """Continue with another optimizer after a change of what is trainable; DDP is built again."""
        self.optimizer = optimizer
        self.model = distributed.unwrap(self.model)  # frees the old wrapper before there is a new one
        if isinstance(counts := getattr(self.model, "loss_normalization", None), LossNormalization):
            counts.across_ranks = True  # a copied model is normalised locally until it trains on all ranks
        self.model = distributed.wrap(self.model, self.device)

    @contextmanager
    def _open_loader(self) -> Iterator[Iterator[Batch]]:
        """Iterate over the rest of the current epoch; shuts the workers down on the way out."""
        if self.sampler is not None:
            self.sampler.set_epoch(self.epoch, self.offset * self.accumulate)
        # creating an iterator draws a seed; a resume in mid-epoch creates one more than an unbroken run
        with untouched_rng():
            batches = iter(self.loader)
        try:
            for number in range(self.offset * self.accumulate if self.sampler is None else 0):
                next_batch(batches, number, len(self.loader))
            yield batches
        finally:
            shut_down_workers(self.loader, batches)

    def _load_batches(self, batches: Iterator[Batch]) -> list[Batch]:
        """Return the next batches on the device; measures how long the loop waits for them."""
        self._begin = perf_counter()
        found = next_batches(batches, self.offset * self.accumulate, self.accumulate, len(self.loader))
        if self.move is not None:
            for batch in found:
                self.move(batch, self.device)
        self.seconds["data"] = perf_counter() - self._begin
        return found

    def _autocast(self) -> torch.autocast:
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        return torch.autocast(self.device.type, dtype=dtype, enabled=self.use_amp)

    def _update(self) -> None:
        """Clip the gradients and take the optimizer's step, if loss and gradients are finite."""
        norms, scaled = GradientNorms.of(self.optimizer), self.scaler.is_enabled()
        loss = torch.as_tensor(self.loss_on_device)
        # infinite gradients are normal for a GradScaler: it skips the step and lowers its scale
        finite = verdict(loss, None if scaled else norms, isinstance(self.model, DistributedDataParallel))
        frames = [str(name) for name in self.batch.get("frame_id", ())]
        record = StepRecord(self.iteration, self.epoch + 1, loss, norms, finite, frames, self.tb_dict)
        if self.clip_norm is not None:
            norms.clip(self.clip_norm)
        self._grad_norm = norms.total
        with self._back_to_failed_step():
            self.guard.update(record, self, lambda: self.scaler.step(self.optimizer), at_once=scaled)

    @contextmanager
    def _back_to_failed_step(self) -> Iterator[None]:
        """If the step before the present one was not finite, it does not count."""
        try:
            yield
        except NonFiniteLossError:
            if self.guard.failed is not None:
                self._count_steps(self.guard.failed.iteration - self.iteration)
            raise

    def _count_steps(self, number: int) -> None:
        self.iteration += number
        self.offset += number
        count_steps(distributed.unwrap(self.model), number)


_STOP_ITERATION = (
    "User code called by the training loop (a hook, the model, `move`) must not raise StopIteration, since a "
    "loop takes it for its end. It was raised in {0}. Catch it there, or give next() a default."
)
