"""The two functions of the original recipe.

They call ``eval()`` on norm layers, once: the next ``model.train()`` undoes it, so call them after it in
every iteration. Weight and bias keep training. ``freeze`` with ``FREEZE.PARAMETERS: False`` does the same,
and ``train()`` does not undo it.
"""

from __future__ import annotations

import logging

from torch import nn

from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.entries.paths import unwrap, walk


def set_bn_eval(module: nn.Module) -> None:
    """Put ``module`` into eval mode if it is a norm layer with running statistics, else leave it.

    For ``model.apply(set_bn_eval)``; the layer of a wrapped or user-made class counts too.
    """
    if layer_types.is_norm(module):
        module.eval()


def set_bn_to_eval(model: nn.Module, logger: logging.Logger | None = None) -> list[str]:
    """Put every norm layer of ``model`` into eval mode and log each; returns their names."""
    log = logger or logging.getLogger("pcdet_freeze.freeze")
    names: dict[int, str] = {}
    for path, module, _ in walk(unwrap(model)):
        if layer_types.is_norm(module) and id(module) not in names:
            names[id(module)] = path
            set_bn_eval(module)
            log.info("%s (%s): eval mode, until the next train()", path or "the model", type(module).__name__)
    return list(names.values())
