"""The determinism check (H3) on encoders of repeated blocks: which modules it names, and the fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from first_steps_toys import Loop, Part
from torch import Tensor, nn

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezePlan


class OwnDropout(Part):
    """Drops by its own code, as attention does that calls ``scaled_dot_product_attention``."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.dropout(self.linear(x), 0.5, self.training)


class Block(nn.Module):
    """A residual block that is left out at random."""

    def __init__(self, skip: float = 0.0, attention: type[Part] = Part) -> None:
        super().__init__()
        self.attention, self.mlp, self.skip = attention(), nn.Linear(4, 4), skip

    def forward(self, x: Tensor) -> Tensor:
        if self.training and self.skip and float(torch.rand(())) < self.skip:
            return x
        return x + self.mlp(self.attention(x))


def refusal(part: nn.Module, **options: Any) -> str:
    with pytest.raises(FreezeError) as caught:
        Loop(part, plan=FreezePlan(("vfe",), **options)).step()
    return str(caught.value)


def blocks(**more: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Sequential(*(Block(**more) for _ in range(3))))


def test_h3_the_fix_names_every_frozen_module_of_the_class() -> None:
    message = refusal(blocks(attention=OwnDropout))
    assert "vfe.1.0.attention (OwnDropout)" in message and "FREEZE.EVAL: [vfe.1.*.attention]" in message
    Loop(blocks(attention=OwnDropout), plan=FreezePlan(("vfe",), eval=("vfe.1.*.attention",))).step()


def test_h3_the_fix_keeps_the_modules_that_are_locked_already() -> None:
    message = refusal(blocks(attention=OwnDropout), eval=["vfe.1.0"])
    assert "vfe.1.1.attention" in message and "FREEZE.EVAL: [vfe.1.*.attention]" in message


def test_h3_the_fix_lists_modules_that_no_pattern_of_numbers_names() -> None:
    part = nn.Sequential(Block(attention=OwnDropout), OwnDropout())
    assert "FREEZE.EVAL: [vfe.0.attention, vfe.1]" in refusal(part)


def test_h3_the_fix_of_blocks_that_are_calls_of_their_own_is_given_once() -> None:
    names = ("vfe", "!vfe.1.3")  # so that each of the other blocks is a call
    part = nn.Sequential(nn.Linear(4, 4), nn.Sequential(*(Block(attention=OwnDropout) for _ in range(4))))
    with pytest.raises(FreezeError) as caught:
        Loop(part, plan=FreezePlan(names)).step()
    message = str(caught.value)
    assert all(f"vfe.1.{k}.attention (OwnDropout) is not deterministic" in message for k in range(3))
    assert message.count("FREEZE.EVAL: [vfe.1.0.attention, vfe.1.1.attention, vfe.1.2.attention]") == 1
    assert message.count("FREEZE.EVAL") == 1


def test_h3_a_module_that_is_used_twice_is_named_once() -> None:
    part = OwnDropout()
    assert "FREEZE.EVAL: [vfe.0]" in refusal(nn.Sequential(part, nn.ReLU(), part)).replace("vfe.2", "vfe.0")


@pytest.mark.parametrize("seed", range(4))
def test_h3_a_block_that_is_left_out_at_random_is_named_and_not_its_container(seed: int) -> None:
    torch.manual_seed(seed)
    message = refusal(blocks(skip=0.5))
    assert "(Block) is not deterministic" in message and "FREEZE.EVAL: [vfe.1.*]" in message


def test_h3_numbers_of_train_mode_that_changed_no_output_are_a_warning_with_the_fix(caplog: Any) -> None:
    Loop(blocks(skip=1e-9)).step()
    assert "vfe (Sequential) draws random numbers in train mode only" in caplog.text
    assert "FREEZE.EVAL: [vfe]" in caplog.text


@dataclass
class Tokens:
    last: Tensor


class Encoder(Part):
    """Returns a dataclass; scales by its own code in train mode."""

    def forward(self, x: Tensor) -> Any:
        return Tokens(self.linear(x) * (1.1 if self.training else 1.0))


class Pooled(nn.Module):
    def forward(self, tokens: Tokens) -> Tensor:
        return tokens.last


def test_h3_the_outputs_of_a_module_that_returns_a_dataclass_are_compared() -> None:
    message = refusal(nn.Sequential(Encoder(), Pooled()))
    assert "vfe.0 (Encoder) differs between train and eval mode" in message


class Masked(Part):
    """torch's encoder leaves out padded tokens in eval mode, and computes them in train mode."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)

    def forward(self, x: Tensor) -> Tensor:
        padded = torch.arange(2)[None] > (torch.arange(len(x)) % 2)[:, None]
        tokens: Tensor = self.layers(torch.stack([x, x], 1), src_key_padding_mask=padded)
        return tokens.mean(1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_h3_a_transformer_that_leaves_out_padded_tokens_in_eval_mode_is_named_with_the_fix() -> None:
    assert "vfe.layers (TransformerEncoder) differs between train and eval mode" in refusal(Masked())
    Loop(Masked(), plan=FreezePlan(("vfe",), eval=("vfe.layers",))).step()
