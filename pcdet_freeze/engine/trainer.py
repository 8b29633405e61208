"""The training loop. :meth:`Trainer.run` is all of it; what happens around it is in hooks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Protocol

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from pcdet_freeze.datasets.loader import Loader, next_batch, shut_down_workers
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.optim.lr_schedule import Schedule
from pcdet_freeze.errors import DataError, PCDetFreezeError, TrainingError
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_rng_state, untouched_rng
from pcdet_freeze.utils.stop_iteration import raised_in

Batch = dict[str, Any]


class EpochOrder(Protocol):
    """A sampler whose order is a function of the epoch."""

    def set_epoch(self, epoch: int, start_iter: int = 0) -> None:
        """Choose the order of ``epoch`` (0-based) and skip its first ``start_iter`` batches."""


class NonFiniteLossError(PCDetFreezeError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; the weights were not updated with it."""


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

    Attributes:
        epoch: finished epochs.
        offset: iterations done in the current epoch.
        iteration: iterations done in all.
        stopped: set it to True to end the run after the current step.
        loss, grad_norm, lr, tb_dict, disp_dict, batch: of the last iteration.
        seconds: of the last iteration: data, forward, batch.
        results: plain data from hooks for ``run.json``.
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
        logger: logging.Logger | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.loader, self.sampler, self.hooks = loader, sampler, list(hooks)
        self.epochs, self.max_iters = epochs, max_iters
        self.device, self.clip_norm, self.use_amp = device or torch.device("cpu"), clip_norm, use_amp
        self.move, self.logger = move, logger or logging.getLogger("pcdet_freeze")
        self.scaler = _new_scaler(self.device, use_amp and self.device.type == "cuda")
        self.epoch, self.offset, self.iteration, self.stopped = 0, 0, 0, False
        self.loss = self.grad_norm = self.lr = math.nan
        self.tb_dict: dict[str, Any] = {}
        self.disp_dict: dict[str, Any] = {}
        self.batch: Batch = {}
        self.results: dict[str, Any] = {}
        self.seconds = {"data": 0.0, "forward": 0.0, "batch": 0.0}
        self.resumed_rng: dict[str, Any] | None = None
        self._begin = perf_counter()
        self.epoch_length = len(loader)
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
        self.stopped = False
        self.scaler = _without_pending_step(self.scaler, self.device)
        if not self._has_more:
            self.logger.warning(_FINISHED, self.epoch, self.epochs, self.iteration)
        try:
            self._loop()
        except BaseException as error:
            for hook in self.hooks:
                hook.on_exception(self)
            if isinstance(error, StopIteration):
                raise TrainingError(_STOP_ITERATION.format(raised_in(error))) from error
            raise

    def _loop(self) -> None:
        for hook in self.hooks:
            hook.before_train(self)
        self._restore_rng()
        while self._has_more:
            for hook in self.hooks:
                hook.before_epoch(self)
            with self._open_loader() as batches:
                while self.offset < self.epoch_length and not self._must_stop:
                    self.step(self._load_batch(batches))
                    for hook in self.hooks:
                        hook.after_step(self)
            if self.offset >= self.epoch_length:
                self.epoch, self.offset = self.epoch + 1, 0
                distributed.share_buffers(self.model)
                for hook in self.hooks:
                    hook.after_epoch(self)
        for hook in self.hooks:
            hook.after_train(self)

    def step(self, batch: Batch) -> None:
        """Run one iteration: forward, backward, clipping, optimizer step."""
        self.batch = batch
        # in every iteration, as OpenPCDet's loop does: a hook or an evaluation may have called eval()
        self.model.train()
        self.lr = self.schedule.apply(self.optimizer, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._forward(batch)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self._clip()
        self.scaler.step(self.optimizer)
        # the counters follow the optimizer step, so that an interrupted iteration does not count
        self.iteration += 1
        self.offset += 1
        _count_step(distributed.unwrap(self.model))
        self.scaler.update()
        self.seconds["batch"] = perf_counter() - self._begin

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
        self.model = distributed.wrap(self.model, self.device)

    def _restore_rng(self) -> None:
        """Set the random generators to the state of the checkpoint that the run resumes from."""
        state, self.resumed_rng = self.resumed_rng, None
        if state is not None:
            set_rng_state(state)

    @contextmanager
    def _open_loader(self) -> Iterator[Iterator[Batch]]:
        """Iterate over the rest of the current epoch; shuts the workers down on the way out."""
        if self.sampler is not None:
            self.sampler.set_epoch(self.epoch, self.offset)
        # creating an iterator draws a seed; a resume in mid-epoch creates one more than an unbroken run
        with untouched_rng():
            batches = iter(self.loader)
        try:
            for number in range(self.offset if self.sampler is None else 0):
                next_batch(batches, number, self.epoch_length)
            yield batches
        finally:
            shut_down_workers(self.loader, batches)

    def _load_batch(self, batches: Iterator[Batch]) -> Batch:
        """Return the next batch on the device; measures how long the loop waits for it."""
        self._begin = perf_counter()
        batch: Batch = next_batch(batches, self.offset, self.epoch_length)
        if self.move is not None:
            self.move(batch, self.device)
        self.seconds["data"] = perf_counter() - self._begin
        return batch

    def _forward(self, batch: Batch) -> torch.Tensor:
        begin = perf_counter()
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=self.use_amp):
            result, self.tb_dict, self.disp_dict = self.model(batch)
        loss: torch.Tensor = result["loss"].mean()
        self.loss = float(loss.detach())
        self.seconds["forward"] = perf_counter() - begin
        if not loss.requires_grad:
            raise TrainingError(
                "The loss does not depend on any trainable parameter. Remove an entry from "
                "MODEL.NOT_TRAIN_IN_MULTI_TASK."
            )
        if not math.isfinite(self.loss):
            self._raise_non_finite("loss", self.loss)
        return loss

    def _clip(self) -> None:
        if self.clip_norm is None:
            return
        with_grad = [
            p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None
        ]
        self.grad_norm = float(clip_grad_norm_(with_grad, self.clip_norm))
        # infinite gradients are normal for a GradScaler: it skips the step and lowers its scale
        if not self.scaler.is_enabled() and not math.isfinite(self.grad_norm):
            self._raise_non_finite("gradient norm", self.grad_norm)

    def _raise_non_finite(self, what: str, value: float) -> None:
        parts = {name: number for name, number in self.tb_dict.items() if not _is_finite(number)}
        frames = self.batch.get("frame_id")
        raise NonFiniteLossError(
            f"The {what} must be finite, but is {value} at iteration {self.iteration} (epoch "
            f"{self.epoch + 1}); not finite in it: {parts or 'none of the logged parts'}; frames: "
            f"{list(frames if frames is not None else [])}. The weights were not updated, and earlier "
            "checkpoints remain valid. Lower OPTIMIZATION.LR, or look at these frames."
        )


_FINISHED = (
    "Nothing is left to train: epoch %d of %d, %d iterations are done. To train longer raise --epochs (or "
    "--max_iters); to start a new run choose another --extra_tag."
)
_STOP_ITERATION = (
    "User code called by the training loop (a hook, the model, `move`) must not raise StopIteration, since a "
    "loop takes it for its end. It was raised in {0}. Catch it there, or give next() a default."
)


def _new_scaler(device: torch.device, enabled: bool) -> torch.amp.GradScaler:
    # torch 2.2 has it for CUDA only
    if hasattr(torch.amp, "GradScaler"):
        return torch.amp.GradScaler(device.type, enabled=enabled)
    return torch.cuda.amp.GradScaler(enabled=enabled)


def _without_pending_step(scaler: torch.amp.GradScaler, device: torch.device) -> torch.amp.GradScaler:
    """A scaler of equal state that an interrupt has not left between ``unscale_`` and ``update``."""
    if not scaler.is_enabled():
        return scaler
    made = _new_scaler(device, True)
    made.load_state_dict(scaler.state_dict())
    return made


def _count_step(model: nn.Module) -> None:
    count = getattr(model, "update_global_step", None)
    if count is not None:
        count()


def _is_finite(number: Any) -> bool:
    return math.isfinite(float(number)) if isinstance(number, (int, float, torch.Tensor)) else True


def clip_norm_of(optim_cfg: Mapping[str, Any]) -> float | None:
    """OPTIMIZATION.GRAD_NORM_CLIP; None (no clipping) where it is absent, null or not above zero."""
    value = optim_cfg.get("GRAD_NORM_CLIP")
    return float(value) if value is not None and value > 0 else None
