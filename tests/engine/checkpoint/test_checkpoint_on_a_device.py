"""A checkpoint of a model on a device: model and optimizer state are copied to the host together."""

from __future__ import annotations

import fake_device
import torch
from engine_toy import assert_same_state, toy_trainer
from fake_device import move_to_device, on_device

from pcdet_freeze.engine.checkpoint.io import checkpoint_state


def test_a_checkpoint_is_that_of_the_cpu_in_one_copy() -> None:
    trainer = toy_trainer(epochs=1, optimizer="adam")
    trainer.run()
    on_cpu = checkpoint_state(trainer)
    move_to_device(trainer.model)
    parameters = list(trainer.model.parameters())
    trainer.optimizer.param_groups[0]["params"] = parameters
    states = list(trainer.optimizer.state.values())
    trainer.optimizer.state.clear()
    for parameter, state in zip(parameters, states, strict=True):
        trainer.optimizer.state[parameter] = {name: on_device(value) for name, value in state.items()}
    fake_device.copies.clear()
    found = checkpoint_state(trainer)
    assert len(fake_device.copies) == 1
    for key in ("model_state", "optimizer_state"):
        assert_same_state(found[key], on_cpu[key])
    assert type(found["model_state"]["head.weight"]) is torch.Tensor
