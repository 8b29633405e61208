"""F8: maps stay channels-last from the scatter to the heads; MODEL.CHANNELS_LAST switches it."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from center_cases import center_batch, center_model
from second_cases import second_batch, second_model
from task_cases import STAGE_2, task_batch, task_config, task_model
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.freezing import freeze
from pcdet_freeze.freezing.prefix import Replanner
from pcdet_freeze.freezing.verification.digest import tensor_digests
from pcdet_freeze.ops.maps import map_layout
from pcdet_freeze.ops.maps.map_layout import is_channels_last, is_faster_channels_last, train_channels_last
from pcdet_freeze.utils.tensors import relative_error

TASKS = ("segment", "lane")
SIZES = ((32, 32), (16, 16))
COPIES = ("copy_", "clone", "_to_copy")


class Maps(TorchDispatchMode):
    """Operators on maps whose channels do not lie side by side, and copies into another layout."""

    def __init__(self) -> None:
        super().__init__()
        self.apart: list[str] = []
        self.copies: list[str] = []
        self.names: set[str] = set()
        self.seen = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        maps = [t for t in tree_leaves((args, kwargs, result)) if isinstance(t, Tensor) and is_map(t)]
        self.seen += len(maps)
        self.names |= {func._opname} if maps else set()
        self.apart += [f"{func._opname} {tuple(t.shape)}" for t in maps if t.stride(1) != 1]
        if func._opname in COPIES and len({t.stride() for t in maps}) > 1:
            self.copies.append(f"{func._opname} {tuple(maps[0].shape)}")
        return result


def is_map(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a map between scatter and heads, whose outputs have fewer channels."""
    if tensor.dim() != 4 or not tensor.is_floating_point():
        return False
    return tensor.shape[1] >= 8 and tuple(tensor.shape[2:]) in SIZES and tensor.shape[1] != tensor.shape[2]


def step(model: Any, batch: dict[str, Any]) -> Tensor:
    loss: Tensor = model.train()(dict(batch))[0]["loss"]
    loss.backward()
    return loss.detach()


def with_tasks(choice: object) -> Any:
    """A model of three tasks as the trainer prepares it."""
    model = task_model(*TASKS, config=task_config(*TASKS) | {"CHANNELS_LAST": choice})
    train_channels_last(model.modules())
    return model


def test_f8_no_map_of_an_unfrozen_step_leaves_the_channels_last_format() -> None:
    model = with_tasks("auto")
    with Maps() as maps:
        step(model, task_batch())
    assert maps.seen > 100 and not maps.apart and not maps.copies


@pytest.mark.parametrize("names", [["vfe", "backbone_2d.blocks"], STAGE_2, ["backbone_2d.deblocks.0"]])
def test_f8_no_map_of_a_frozen_step_leaves_the_channels_last_format(names: list[str]) -> None:
    model, batch = with_tasks("auto"), task_batch()
    freeze(model, names)
    replanner = Replanner(model.train())
    replanner.prepare(dict(batch))
    with replanner.fast:  # blocks compute their maps of empty space once
        step(model, batch)
    with Maps() as maps, replanner.fast:
        step(model, batch)
    assert maps.seen > 50 and not maps.apart and not maps.copies


def test_f8_norms_of_convolutions_that_run_as_one_are_exact() -> None:
    model, batch = center_model(), center_batch()
    train_channels_last(model.modules())
    freeze(model, ["vfe", "backbone_2d.blocks"])
    replanner = Replanner(model.train())
    replanner.prepare(dict(batch))
    with Maps() as maps, replanner.fast:
        step(model, batch)
    assert replanner.fast.plan.siblings and "convolution" in maps.names
    assert not any("batch_norm" in name for name in maps.names)


def test_f8_false_gives_contiguous_maps() -> None:
    with Maps() as maps:
        step(with_tasks(False), task_batch())
    assert maps.apart


@pytest.mark.parametrize(
    ("model", "batch"), [(center_model, center_batch), (second_model, second_batch)], ids=["center", "second"]
)
def test_f8_other_detectors_write_channels_last_maps(model: Any, batch: Any) -> None:
    built, given = model(), batch()
    train_channels_last(built.modules())
    seen: list[Tensor] = []
    built.backbone_2d.register_forward_hook(lambda module, args, output: seen.append(output))
    step(built, given)
    maps = [seen[0][key] for key in ("spatial_features", "spatial_features_2d")]  # type: ignore[call-overload]
    assert all(map(is_channels_last, maps))


def test_f8_losses_gradients_and_statistics_differ_by_rounding() -> None:
    own, torchs = with_tasks(True), with_tasks(False)
    losses = [step(model, task_batch()) for model in (own, torchs)]
    assert relative_error(losses[1], losses[0]) < 1e-6
    gradients = [[p.grad for p in model.parameters() if p.grad is not None] for model in (torchs, own)]
    whole = torch.cat([gradient.flatten() for gradient in gradients[0]]).norm()
    # to the norm of all: the gradient of a bias before a norm layer is rounding alone
    assert all((b - a).norm() < 2e-6 * whole for a, b in zip(*gradients, strict=True))
    statistics = zip(torchs.buffers(), own.buffers(), strict=True)
    assert max(relative_error(a, b) for a, b in statistics) < 1e-6


def test_f8_detections_and_other_predictions_differ_by_rounding() -> None:
    outputs = [with_tasks(choice).eval() for choice in (True, False)]
    found = []
    for model in outputs:
        with torch.no_grad():
            batch = model.run_modules(task_batch())
        found.append([batch[k] for k in ("batch_box_preds", "point_logits", "lane_cls_logits")])
    assert max(relative_error(b, a) for a, b in zip(*found, strict=True)) < 1e-5


def test_f8_weights_checkpoints_and_digests_do_not_depend_on_the_format() -> None:
    own, torchs = with_tasks(True), with_tasks(False)
    step(own, task_batch())
    state, other = own.state_dict(), torchs.state_dict()
    assert list(state) == list(other) and all(tensor.is_contiguous() for tensor in state.values())
    assert all(p.grad is None or p.grad.is_contiguous() for p in own.parameters())
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    torchs.load_state_dict(torch.load(file, weights_only=True))
    assert tensor_digests(list(torchs.state_dict().values())) == tensor_digests(list(state.values()))
    conv = next(t for t in state.values() if t.dim() == 4 and t.shape[2] == 3)
    assert tensor_digests([conv.contiguous(memory_format=torch.channels_last)]) == tensor_digests([conv])


def map_of_forward(model: Any) -> Tensor:
    with torch.no_grad():
        written: Tensor = model.run_modules(task_batch())["spatial_features"]
    return written


def test_f8_auto_is_for_training_steps_of_the_trainer() -> None:
    alone, trained = task_model("segment"), with_tasks("auto")
    assert is_channels_last(map_of_forward(trained.train()))
    assert map_of_forward(trained.eval()).is_contiguous()
    assert map_of_forward(alone.train()).is_contiguous()
    assert is_channels_last(map_of_forward(with_tasks(True).eval()))


def test_f8_auto_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert is_faster_channels_last(cpu) == torch.backends.mkldnn.is_available()
    monkeypatch.setattr(map_layout.torch.backends.cudnn, "allow_tf32", True)
    assert is_faster_channels_last(cuda) and not is_faster_channels_last(torch.device("meta"))
    monkeypatch.setattr(map_layout.torch.backends.cudnn, "allow_tf32", False)
    assert not is_faster_channels_last(cuda)


def test_f8_another_value_is_an_error() -> None:
    with pytest.raises(ConfigError, match="CHANNELS_LAST"):
        with_tasks("sometimes")
