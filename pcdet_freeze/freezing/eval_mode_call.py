"""Running one module of a training model as in eval: a frozen head that a live module depends on (T1)."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from pcdet_freeze.freezing.eval_lock import requested_mode
from pcdet_freeze.freezing.module_graph import Stage


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode for ``module`` and all in it; afterwards each has the training flag that it had before."""
    training = [part for part in module.modules() if requested_mode(part)]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


@torch.no_grad()
def run_in_eval_mode(
    name: str, module: nn.Module, batch_dict: dict[str, Any], given: Collection[str]
) -> None:
    """Run a frozen head as in eval, without a graph, on a shallow copy of ``batch_dict``.

    Of what it writes, its declared ``writes`` are taken over, so it cannot replace labels. Where it declares
    nothing, all is taken over but the keys that came with the batch.

    Args:
        name: what the module is called in the detector.
        given: keys that the loader gave.
    """
    stage = Stage.of(name, module)
    with eval_mode(module):
        found = module(dict(batch_dict))
    batch_dict.update(
        {
            key: value
            for key, value in found.items()
            if (key in stage.writes if stage.declared else key not in given)
        }
    )
