"""How long the certificate of a large frozen model takes."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from pcdet_freeze.bench.timing import Spread, interleave
from pcdet_freeze.freezing import freeze

WIDTH = 2000


def big_model(parameters: int) -> nn.Module:
    """Linear and norm layers with at least ``parameters`` float32 parameters, in blocks of 4 M, frozen part
    ``blocks``."""
    blocks: list[nn.Module] = []
    for _ in range(-(-parameters // WIDTH**2)):
        blocks += [nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)]
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))


def certificate_cost(rounds: int, parameters: int = 60_000_000) -> list[dict[str, Any]]:
    """One row: seconds (median, quartiles) for the certificate of so many parameters, and bytes a second."""
    model = big_model(parameters)
    handle = freeze(model, ["blocks"], certify=False)
    seconds = interleave({"certificate": handle.certificate}, rounds, torch.device("cpu"))
    spread = Spread.of(seconds["certificate"])
    state = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in state)
    return [
        {
            "variant": "certificate",
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "tensors": len(state),
            "seconds": spread.median,
            "seconds_quartiles": [spread.low, spread.high],
            "bytes_per_second": size / spread.median,
            "rounds": rounds,
        }
    ]
