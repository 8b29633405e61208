"""F5: a training forward of the plugin that raises, or is interrupted, and the forwards after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pillar_detector import ViewingHead, pillar_batch, pillar_detector, run
from standin_runs import Standin

from pcdet_freeze import openpcdet
from pcdet_freeze.integrations.openpcdet.session import session_of
from pcdet_freeze.utils.picklable_hook import PicklableHook

TRUNK = ["vfe", "backbone_2d"]
ERRORS = [ValueError, KeyboardInterrupt]


class FailingHead(ViewingHead):
    """Raises the error that the batch has under ``raises``, in the copy of the model that plans, too."""

    def forward(self, batch_dict: dict[str, Any]) -> dict[str, Any]:
        if "raises" in batch_dict:
            raise batch_dict["raises"]
        return super().forward(batch_dict)


def detector(standin: Standin) -> Any:
    openpcdet.install()
    return pillar_detector(standin, TRUNK, {"FUSE": True}, DenseHead=FailingHead)


def fail_in_batch(model: Any, error: type[BaseException]) -> None:
    model({**pillar_batch(), "raises": error("stop")})


def fail_in_model(model: Any, error: type[BaseException]) -> None:
    def stop(*_: Any) -> None:
        raise error("stop")

    hook = model.dense_head.register_forward_pre_hook(PicklableHook(stop))  # not in copies
    try:
        run(model)
    finally:
        hook.remove()


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("fail", [fail_in_batch, fail_in_model])
@pytest.mark.parametrize("steps", [0, 2])
def test_f5_the_forwards_after_one_that_raised_are_folded(
    standin: Standin, error: type[BaseException], fail: Any, steps: int
) -> None:
    model, other = detector(standin), detector(standin)
    for number in range(steps):
        run(model, number), run(other, number)
    with pytest.raises(error, match="stop"):
        fail(model, error)
    for number in range(steps, steps + 2):
        assert torch.equal(run(model, number).maps, run(other, number).maps)
    plan = session_of(model).prefix.replanner.plan  # type: ignore[union-attr]
    assert len(plan.folds) == 6 and plan.quick == ("vfe", "backbone_2d") and not plan.plain


def test_f5_after_an_error_in_a_forward_every_module_is_as_it_was(standin: Standin) -> None:
    model = detector(standin)
    expected = run(model).loss
    with pytest.raises(TypeError):
        model({**pillar_batch(), "batch_size": "two"})
    assert not any("forward" in module.__dict__ for module in model.modules() if module is not model)
    assert torch.equal(run(model).loss, expected)
