"""The training loop. :meth:`Trainer.run` is all of it; what happens around it is in hooks."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from time import perf_counter
from typing import Any

import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from pcdet_freeze.engine.optim.lr_schedule import Schedule
from pcdet_freeze.errors import DataError, FreezeError, PCDetFreezeError
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.rng import set_rng_state, untouched_rng

Batch = dict[str, Any]


class NonFiniteLossError(PCDetFreezeError, ArithmeticError):
    """A loss or gradient that is NaN or infinite; the weights were not touched by it."""


class Trainer:
    """Trains ``model`` on ``loader`` for ``epochs`` epochs; calls ``hooks`` (``hooks.Hook``) in order.

    The model is called as ``model(batch)`` and returns ``({'loss': loss}, tb_dict, disp_dict)``.
    ``sampler``, where given, is told ``set_epoch(epoch, start_iter)`` and must then skip the first
    ``start_iter`` batches. ``move(batch, device)`` brings a batch to the device in place.

    State that hooks read: ``epoch`` (finished ones), ``offset`` (iterations done in the present one),
    ``iteration`` (all of them), ``loss``, ``grad_norm``, ``lr``, ``tb_dict``, ``disp_dict``, ``batch`` and
    ``seconds`` (of the last iteration: data, forward, batch). ``stopped = True`` ends the run after the step.
    ``results`` is plain data that hooks leave for ``run.json``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        loader: Any,
        *,
        epochs: int,
        hooks: Sequence[Any] = (),
        sampler: Any = None,
        device: torch.device | None = None,
        clip_norm: float | None = None,
        use_amp: bool = False,
        move: Callable[[Batch, torch.device], Any] | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.loader, self.sampler, self.epochs, self.hooks = loader, sampler, epochs, list(hooks)
        self.device, self.clip_norm, self.use_amp = device or torch.device("cpu"), clip_norm, use_amp
        self.move, self.logger = move, logger or logging.getLogger("pcdet_freeze")
        scales = use_amp and self.device.type == "cuda"
        # torch 2.2 has it for CUDA only
        self.scaler = (
            torch.amp.GradScaler(self.device.type, enabled=scales)
            if hasattr(torch.amp, "GradScaler")
            else torch.cuda.amp.GradScaler(enabled=scales)
        )
        self.epoch = self.offset = self.iteration = 0
        self.stopped = False
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
        """Train from where the trainer stands to the end of the last epoch, or until a hook stops it."""
        self._call("before_train")
        self._take_up_rng()
        while self.epoch < self.epochs and not self.stopped:
            self._call("before_epoch")
            for batch in self._batches():
                self.step(batch)
                self._call("after_step")
                if self.stopped:
                    break
            if self.offset >= self.epoch_length or not self.stopped:
                self.epoch, self.offset = self.epoch + 1, 0
                distributed.share_buffers(self.model)
                self._call("after_epoch")
        self._call("after_train")

    def step(self, batch: Batch) -> None:
        """One iteration: forward, backward, clipping, optimizer."""
        self.batch = batch
        # In every iteration, as OpenPCDet's loop does: whoever called eval() in between is undone here.
        self.model.train()
        self.lr = self.schedule.apply(self.optimizer, self.iteration)
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._forward(batch)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        self._clip()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.iteration += 1
        self.offset += 1
        self.seconds["batch"] = perf_counter() - self._begin

    @property
    def epoch_number(self) -> int:
        """1-based number of the epoch that the last iteration belongs to; 0 before the first."""
        return self.epoch + (1 if self.offset else 0)

    def rebuild(self, optimizer: torch.optim.Optimizer) -> None:
        """Go on with another optimizer, after a change of what trains; DDP is made anew for it."""
        self.optimizer = optimizer
        self.model = distributed.unwrap(self.model)  # lets the old wrapper go before there is a new one
        self.model = distributed.wrap(self.model, self.device)

    def _call(self, place: str) -> None:
        for hook in self.hooks:
            getattr(hook, place)(self)

    def _take_up_rng(self) -> None:
        if self.resumed_rng is not None:
            set_rng_state(self.resumed_rng)
            self.resumed_rng = None

    def _batches(self) -> Iterator[Batch]:
        """The rest of the present epoch; counts the seconds that the loop waits for each batch."""
        if self.sampler is not None:
            self.sampler.set_epoch(self.epoch, self.offset)
        # Making an iterator draws a seed; a resume in mid-epoch makes one more than a run without a break.
        with untouched_rng():
            batches = iter(self.loader)
        while True:
            self._begin = perf_counter()
            batch = next(batches, None)
            if batch is None:
                return
            if self.move is not None:
                self.move(batch, self.device)
            self.seconds["data"] = perf_counter() - self._begin
            yield batch

    def _forward(self, batch: Batch) -> torch.Tensor:
        begin = perf_counter()
        dtype = torch.float16 if self.device.type == "cuda" else torch.bfloat16
        with torch.autocast(self.device.type, dtype=dtype, enabled=self.use_amp):
            result, self.tb_dict, self.disp_dict = self.model(batch)
        loss = result["loss"].mean()
        _count_step(distributed.unwrap(self.model))
        self.loss = float(loss.detach())
        self.seconds["forward"] = perf_counter() - begin
        if not loss.requires_grad:
            raise FreezeError(
                "A loss must be left that reaches something trainable, but the loss of this model depends on "
                "no trainable parameter. Take an entry out of MODEL.NOT_TRAIN_IN_MULTI_TASK."
            )
        if not math.isfinite(self.loss):
            self._refuse("loss", self.loss)
        return loss

    def _clip(self) -> None:
        if self.clip_norm is None:
            return
        held = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.grad_norm = float(clip_grad_norm_(held, self.clip_norm))
        # A GradScaler meets infinite gradients as a matter of course, and skips the step by itself.
        if not self.scaler.is_enabled() and not math.isfinite(self.grad_norm):
            self._refuse("gradient norm", self.grad_norm)

    def _refuse(self, what: str, value: float) -> None:
        parts = {name: number for name, number in self.tb_dict.items() if not _is_finite(number)}
        frames = self.batch.get("frame_id")
        raise NonFiniteLossError(
            f"The {what} must be finite, but is {value} at iteration {self.iteration} (epoch "
            f"{self.epoch + 1}); not finite in it: {parts or 'none of the logged parts'}; frames: "
            f"{list(frames if frames is not None else [])}. The weights were not updated, and earlier "
            "checkpoints stay good. Lower OPTIMIZATION.LR, or look at these frames."
        )


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
