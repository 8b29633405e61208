"""Time the certificate of a large frozen model."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from pcdet_freeze.bench.timing import Spread, interleave
from pcdet_freeze.freezing import freeze

WIDTH = 2000


def big_model(parameters: int) -> nn.Module:
    """``blocks`` of Linear (4 M parameters) and BatchNorm, at least ``parameters`` in all, float32."""
    blocks: list[nn.Module] = []
    for _ in range(-(-parameters // WIDTH**2)):
        blocks += [nn.Linear(WIDTH, WIDTH, bias=False), nn.BatchNorm1d(WIDTH)]
    return nn.Sequential(OrderedDict(blocks=nn.Sequential(*blocks)))


def time_certificate(rounds: int, parameters: int = 60_000_000) -> list[dict[str, Any]]:
    """Return one row: seconds (median, quartiles) of a certificate of so many parameters, and bytes/s."""
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
