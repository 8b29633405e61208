"""F5: folding of frozen norm layers into conv, deconv and linear layers; fused sibling convolutions."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fast_toys import Detector, frozen_model, gradients, image
from torch import nn
from torch.nn.utils import parametrizations

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.prefix import Options, Replanner
from pcdet_freeze.freezing.prefix.fold_bn import folded_weights
from pcdet_freeze.freezing.prefix.validate import recorded
from pcdet_freeze.utils.tensors import relative_error

BLOCKS = ["backbone_2d.blocks"]
PAIRS = (
    ("backbone_2d.blocks.0.0", "backbone_2d.blocks.0.1"),
    ("backbone_2d.blocks.1.0", "backbone_2d.blocks.1.1"),
)


def fast_of(model: nn.Module, x: torch.Tensor | None = None, fuse: bool | str = True) -> Replanner:
    fast = Replanner(model, Options(fuse))
    fast.prepare(image() if x is None else x)
    return fast


def norm(kind: Any, width: int) -> Any:
    made = kind(width)
    nn.init.normal_(made.running_mean)
    nn.init.uniform_(made.running_var, 0.5, 2)
    if made.affine:
        nn.init.normal_(made.weight)
        nn.init.normal_(made.bias)
    return made.eval()


LAYERS = [
    (nn.Linear(4, 6), nn.BatchNorm1d, (5, 4)),
    (nn.Conv1d(4, 6, 3, bias=False), nn.BatchNorm1d, (2, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, groups=2), nn.BatchNorm2d, (2, 4, 9, 9)),
    (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d, (2, 4, 5, 5)),
    (nn.Conv3d(4, 6, 1, bias=False), nn.BatchNorm3d, (1, 4, 3, 3, 3)),
    (nn.ConvTranspose1d(4, 6, 2, stride=2), nn.BatchNorm1d, (2, 4, 3)),
    (nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), nn.BatchNorm2d, (2, 4, 3, 3)),
    (nn.ConvTranspose2d(4, 6, 3, groups=2, output_padding=1, stride=2), nn.BatchNorm2d, (2, 4, 3, 3)),
]


@pytest.mark.parametrize(("layer", "kind", "shape"), LAYERS)
@pytest.mark.parametrize("affine", [True, False])
def test_f5_weights_are_folded_for_every_kind_of_layer(
    layer: Any, kind: Any, shape: Any, affine: bool
) -> None:
    torch.manual_seed(0)
    behind = norm(lambda width: kind(width, affine=affine), 6)
    x = torch.randn(shape)
    twin = copy.deepcopy(layer)
    weight, bias = folded_weights(layer, behind)
    twin.weight, twin.bias = nn.Parameter(weight), nn.Parameter(bias)
    assert relative_error(behind(layer(x)), twin(x)) < 1e-6


def test_f5_pairs_of_the_prefix_are_folded_and_features_stay_within_2e_6() -> None:
    model = frozen_model(BLOCKS)
    fast = fast_of(model)
    blocks = [(f"{i}", block) for i, block in enumerate(model.backbone_2d.blocks)]
    with recorded(blocks) as plain:
        model(image())
    with recorded(blocks) as folded, fast.fast:
        model(image())
    assert fast.plan.folds == PAIRS
    differences = [relative_error(plain[key][0], folded[key][0]) for key in plain]
    assert 0 < max(differences) <= 2e-6 and fast.plan.difference == pytest.approx(max(differences))


def test_f5_suffix_gradients_stay_within_1e_4() -> None:
    model = frozen_model(BLOCKS)
    (loss, plain, _), (fast_loss, fast, _) = gradients(model, None), gradients(model, True)
    assert plain.keys() == fast.keys() and fast_loss == pytest.approx(loss, rel=1e-5)
    assert max(relative_error(plain[name], fast[name]) for name in plain) <= 1e-4


def test_f5_a_folded_norm_layer_does_nothing_in_training_and_everything_in_eval() -> None:
    model = frozen_model(BLOCKS)
    fast, ran = fast_of(model), []
    forward = nn.BatchNorm2d.forward

    def count(self: Any, x: torch.Tensor) -> torch.Tensor:
        ran.append(self)
        return forward(self, x)

    nn.BatchNorm2d.forward = count  # type: ignore[method-assign]
    try:
        with fast.fast:
            model(image())
        assert len(ran) == 2  # those of the two live deblocks
        model(image())
        assert len(ran) == 6
    finally:
        nn.BatchNorm2d.forward = forward  # type: ignore[method-assign]


def test_f5_module_state_and_parameters_are_untouched() -> None:
    model = frozen_model(BLOCKS)
    state = {name: value.clone() for name, value in model.backbone_2d.blocks.state_dict().items()}
    objects = list(map(id, model.parameters()))
    with fast_of(model).fast:
        model(image()).backward()
    assert all(
        torch.equal(value, state[name]) for name, value in model.backbone_2d.blocks.state_dict().items()
    )
    assert list(map(id, model.parameters())) == objects


@pytest.mark.parametrize("how", ["load", "write", "replace"])
def test_f5_folded_weights_are_recomputed_when_frozen_tensors_change(how: str) -> None:
    model, other = frozen_model(BLOCKS), Detector()
    fast = fast_of(model)
    with fast.fast:
        model(image())
    for parameter in other.parameters():
        nn.init.normal_(parameter, std=0.1)
    theirs = other.backbone_2d.blocks.state_dict()
    if how == "load":
        model.backbone_2d.blocks.load_state_dict(theirs)
    elif how == "write":
        with torch.no_grad():
            model.backbone_2d.blocks[0][1].running_var.mul_(2)
    else:
        model.backbone_2d.blocks[0][0].weight = nn.Parameter(torch.ones(8, 3, 3, 3), requires_grad=False)
    plain = model.backbone_2d.blocks[0](image())
    with recorded([("0", model.backbone_2d.blocks[0])]) as found, fast.fast:
        model(image())
    assert relative_error(plain, found["0"][0]) < 1e-6


class Odd(Detector):
    """blocks[0] in a way that must not be folded."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        layer, behind = self.backbone_2d.blocks[0][:2]
        if how == "hook":
            layer.register_forward_hook(lambda m, args, out: None)
        elif how == "norm hook":
            behind.register_forward_pre_hook(lambda m, args: None)
        elif how == "parametrized":
            parametrizations.weight_norm(layer)
        elif how == "shared":
            self.backbone_2d.blocks[1][1].running_mean = behind.running_mean
        elif how == "relu between":
            self.backbone_2d.blocks[0] = nn.Sequential(layer, nn.ReLU(), behind)
        elif how == "own norm":
            self.backbone_2d.blocks[0][1] = type("OwnNorm", (nn.BatchNorm2d,), {})(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.how in ("twice", "both used", "kept"):
            layer, behind = self.backbone_2d.blocks[0][:2]
            raw = layer(x)
            features = behind(raw)
            if self.how == "twice":
                features = behind(layer(x)) + features
            elif self.how == "both used":
                features = features + raw.exp()
            else:
                self.raw = raw
            features = self.backbone_2d.deblocks[0](features)
            return self.head["cls"](torch.cat([features, features], dim=1)).sum()
        return super().forward(x)


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("hook", "blocks.0.0 has hooks"),
        ("norm hook", "blocks.0.1 has hooks"),
        ("parametrized", "does not read the output of a convolution"),
        ("shared", "blocks.0.1 shares a tensor"),
        ("relu between", "does not read the output of a convolution"),
        ("own norm", "OwnNorm is not a BatchNorm of torch"),
        ("twice", "called 2 times a step"),
        ("both used", "the output of backbone_2d.blocks.0.0 has other users"),
        ("kept", "the output of backbone_2d.blocks.0.0 has other users"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*shares:UserWarning")
def test_f5_layers_that_cannot_be_folded_run_as_written_and_are_listed(how: str, said: str) -> None:
    model = frozen_model(BLOCKS, Odd(how))
    fast = fast_of(model)
    assert not any("blocks.0." in layer for layer, _ in fast.plan.folds)
    assert any(said in line for line in fast.plan.lines())


def test_f5_a_folded_layer_whose_norm_is_not_called_is_an_error_that_names_the_key() -> None:
    model = frozen_model(BLOCKS)
    fast = fast_of(model)
    model.backbone_2d.blocks[0] = model.backbone_2d.blocks[0][:1]
    with pytest.raises(FreezeError, match="FUSE: False"), fast.fast:
        model(image())


def test_f5_under_autocast_nothing_is_folded_unless_forced() -> None:
    model = frozen_model(BLOCKS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        plain, forced = fast_of(model).plan, fast_of(model, fuse="force").plan
    assert plain.folds == () and any("autocast" in line for line in plain.lines())
    assert forced.folds == PAIRS


def test_f5_with_tf32_layers_are_folded_and_the_log_compares_with_its_rounding() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        plan = fast_of(frozen_model(BLOCKS)).plan
    finally:
        torch.set_float32_matmul_precision("highest")
    assert plan.folds == PAIRS
    assert any("times the rounding of TF32" in line for line in plan.lines())


def test_f5_nothing_is_folded_when_autocast_is_turned_on_later() -> None:
    model = frozen_model(BLOCKS)
    fast = fast_of(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with recorded([("0", model.backbone_2d.blocks[0])]) as plain:
            model(image())
        with recorded([("0", model.backbone_2d.blocks[0])]) as found, fast.fast:
            model(image())
    assert torch.equal(plain["0"][0], found["0"][0])


def test_f5_convolutions_that_read_one_map_are_fused_with_their_own_gradients() -> None:
    model = frozen_model(BLOCKS)
    fast, calls = fast_of(model), []
    assert fast.plan.siblings == (("head.cls", "head.box"),)
    inner = nn.Conv2d._conv_forward

    def count(self: Any, x: torch.Tensor, weight: torch.Tensor, bias: Any) -> torch.Tensor:
        calls.append(tuple(weight.shape[:2]))
        return inner(self, x, weight, bias)

    nn.Conv2d._conv_forward = count  # type: ignore[method-assign]
    try:
        with fast.fast:
            model(image()).backward()
    finally:
        nn.Conv2d._conv_forward = inner  # type: ignore[method-assign]
    assert (8, 8) in calls and (3, 8) not in calls and (5, 8) not in calls
    assert model.head["cls"].weight.grad.shape == (3, 8, 1, 1)


def test_f5_a_plan_runs_what_follows_the_last_fold_twice_and_no_more() -> None:
    class Counting(Detector):
        ends = 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            loss = super().forward(x)
            Counting.ends += 1
            return loss

    fast = fast_of(frozen_model(BLOCKS, Counting()))
    assert fast.plan.folds == PAIRS and fast.plan.difference < 1e-6
    assert Counting.ends == 2


def test_f5_a_sibling_with_another_input_in_a_later_step_runs_separately() -> None:
    class Changing(Detector):
        apart = False

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            features = self.backbone_2d(x)
            other = features * 2 if self.apart else features
            return self.head["cls"](features).sum() + self.head["box"](other).square().sum()

    model = frozen_model(BLOCKS, Changing())
    fast = fast_of(model)
    model.apart = True
    twin = copy.deepcopy(model)
    twin(image()).backward()
    with fast.fast:
        model(image()).backward()
    assert fast.plan.siblings
    assert relative_error(twin.head["box"].weight.grad, model.head["box"].weight.grad) < 1e-5


def test_a_linear_layer_before_a_norm_that_reads_its_transpose_is_folded() -> None:
    class Points(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.head = nn.Linear(4, 6, bias=False), nn.Linear(6, 1)
            self.norm = norm(nn.BatchNorm1d, 6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.norm(self.linear(x).permute(0, 2, 1)).max(dim=2).values).sum()

    model = frozen_model(["linear", "norm"], Points())
    fast = fast_of(model, torch.randn(3, 5, 4))
    assert fast.plan.folds == (("linear", "norm"),) and fast.plan.difference < 1e-6


class Padded(nn.Module):
    """ZeroPad2d, convolution, norm, ReLU in one Sequential, as in OpenPCDet; then a trainable layer."""

    def __init__(self, *pad: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.ZeroPad2d(pad), nn.Conv2d(3, 8, 3, stride=2, bias=False), norm(nn.BatchNorm2d, 8)]
        self.block, self.head = nn.Sequential(*layers, nn.ReLU()), nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(x)).square().sum()


def features(model: nn.Module, fast: Replanner) -> tuple[torch.Tensor, torch.Tensor]:
    """Output of ``model.block``, plain and fast."""
    with recorded([("block", model.block)]) as plain:
        model(image())
    with recorded([("block", model.block)]) as folded, fast.fast:
        model(image())
    return plain["block"][0], folded["block"][0]


def test_f5_the_convolution_pads_by_itself_and_the_relu_overwrites_its_output() -> None:
    model = frozen_model(["block"], Padded(1, 1, 2, 2))
    fast = fast_of(model)
    assert fast.plan.pads == (("block.1", "block.0"),) and fast.plan.relus == (("block.2", "block.3"),)
    x = image() - 1
    assert fast.fast.folds[0].run_relu(x).data_ptr() == x.data_ptr() and x.min() == 0
    plain, folded = features(model, fast)
    assert plain.shape == folded.shape == (2, 8, 4, 3) and relative_error(plain, folded) < 1e-6
    assert model.block[1].padding == (0, 0)


@pytest.mark.parametrize("pad", [(1, 0, 1, 1), (-1, -1, 0, 0)])
def test_f5_padding_that_the_convolution_does_not_have_stays_a_layer(pad: tuple[int, ...]) -> None:
    model = frozen_model(["block"], Padded(*pad))
    fast = fast_of(model)
    assert fast.plan.pads == () and len(fast.plan.folds) == 1
    assert relative_error(*features(model, fast)) < 1e-6


class Residual(Padded):
    """The norm's output is read by an addition too."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        normed = self.block[2](self.block[1](self.block[0](x)))
        return self.head(self.block[3](normed) + normed).square().sum()


class Twice(Padded):
    """One ReLU is called twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        relu = self.block[3]
        return (self.head(self.block(x)) + relu(-x).mean()).square().sum()


@pytest.mark.parametrize("kind", [Residual, Twice])
def test_f5_a_relu_with_other_readers_or_calls_writes_to_memory_of_its_own(kind: Any) -> None:
    model = frozen_model(["block"], kind(1, 1, 1, 1))
    fast = fast_of(model)
    plain = model(image())
    assert fast.plan.relus == () and len(fast.plan.folds) == 1
    with fast.fast:
        assert relative_error(plain, model(image())) < 1e-6


def test_a_tensor_of_an_earlier_step_that_a_module_keeps_does_not_hinder_a_plan() -> None:
    model = frozen_model(["block"], Padded(1, 1, 1, 1))
    model.head.kept = {"preds": [model.head(torch.ones(1, 8, 1, 1))]}  # as OpenPCDet's heads do
    assert len(fast_of(model).plan.folds) == 1 and model.head.kept["preds"][0].grad_fn is not None
