"""F5: how folded layers run on channels-last maps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from pcdet_freeze.freezing.prefix.fold_bn import Fold
from pcdet_freeze.utils.tensors import relative_error


class Transposed(TorchDispatchMode):
    """Whether each convolution that runs is transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func._opname == "convolution":
            self.found.append(args[6])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_f5_a_transposed_convolution_of_single_cells_runs_as_a_convolution(
    layout: torch.memory_format,
) -> None:
    layer, norm = nn.ConvTranspose2d(6, 8, 1, bias=False), nn.BatchNorm2d(8).eval()
    fold, maps = Fold(layer, norm), torch.randn(2, 6, 9, 7).contiguous(memory_format=layout)
    plain = F.conv_transpose2d(maps, *fold.weights())
    with torch.no_grad(), Transposed() as ran:
        found = fold.run_layer(maps)
    assert relative_error(plain, found) < 2e-7
    assert ran.found == [layout != torch.channels_last]
