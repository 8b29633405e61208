"""A StopIteration of a hook, the model or `move` is an error of the training, never the end of an epoch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from engine_toy import ToyModel, toy_trainer
from torch.utils.data import default_collate

from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.engine.trainer import Trainer
from pcdet_freeze.errors import DataError, TrainingError


def leak(*args: Any, **more: Any) -> Any:
    """What a forgotten default does."""
    return next(iter(()))


@pytest.mark.parametrize(
    "place", ["before_train", "before_epoch", "after_step", "after_epoch", "after_train"]
)
def test_a_stop_iteration_of_a_hook_names_file_and_function(place: str) -> None:
    hook = Hook()
    setattr(hook, place, leak)
    with pytest.raises(TrainingError, match=rf"StopIteration.*{__file__}, line \d+, in leak"):
        toy_trainer([hook]).run()


def test_a_stop_iteration_of_the_model_names_file_and_function() -> None:
    class Broken(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            return leak()

    trainer = toy_trainer(model=Broken())
    with pytest.raises(TrainingError, match="in leak"):
        trainer.run()
    assert trainer.iteration == 0 and trainer.model.global_step.item() == 0


def test_a_stop_iteration_of_move_names_file_and_function() -> None:
    with pytest.raises(TrainingError, match="in leak"):
        toy_trainer(move=leak).run()


def test_a_stop_iteration_of_collate_trains_no_epoch(tmp_path: Any) -> None:
    trainer = toy_trainer()
    calls: list[int] = []

    def collate(samples: Any) -> Any:
        calls.append(1)
        return leak() if len(calls) == 3 else default_collate(samples)

    trainer.loader.collate_fn = collate
    with pytest.raises(DataError, match=r"must yield 4 batches.*stopped after 2.*in leak"):
        trainer.run()
    assert (trainer.epoch, trainer.offset, trainer.iteration) == (0, 2, 2)


def test_an_error_message_of_the_loss_without_a_graph_is_no_freeze_error() -> None:
    class Detached(ToyModel):
        def forward(self, batch: dict[str, Any]) -> Any:
            return {"loss": torch.ones(())}, {}, {}

    with pytest.raises(TrainingError, match=r"any trainable parameter.*NOT_TRAIN_IN_MULTI_TASK"):
        toy_trainer(model=Detached()).run()


def test_each_hook_hears_of_an_error() -> None:
    heard: list[str] = []

    class Listens(Hook):
        def after_step(self, trainer: Trainer) -> None:
            raise ValueError("a bug")

        def on_exception(self, trainer: Trainer) -> None:
            heard.append("on_exception")

        def after_train(self, trainer: Trainer) -> None:
            heard.append("after_train")

    with pytest.raises(ValueError, match="a bug"):
        toy_trainer([Listens(), Listens()]).run()
    assert heard == ["on_exception", "on_exception"]
