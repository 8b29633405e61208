"""The two functions that people know from the original recipe, made to last.

The original called ``eval()`` on norm layers after every ``train()``. Here a layer is held, so calling once
is enough, and calling in every iteration does no harm. Weight and bias go on training; only the running
statistics stand still. :func:`pcdet_freeze.unfreeze` lets the layers go.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from torch import nn

from pcdet_freeze.freeze import hold, kinds
from pcdet_freeze.freeze.paths import unwrap, walk
from pcdet_freeze.freeze.records import RECORD, Owner, Record, record_of

TOKEN = "set_bn_eval"


def set_bn_eval(module: nn.Module) -> None:
    """Hold a norm layer with running statistics in eval mode, for ``model.apply(set_bn_eval)``."""
    _hold_norm(module, None)


def set_bn_to_eval(model: nn.Module, logger: logging.Logger | None = None) -> list[str]:
    """Hold every norm layer of ``model`` in eval mode and log each; returns their names."""
    log = logger or logging.getLogger("pcdet_freeze.freeze")
    held: dict[int, str] = {}
    for path, module, parent in walk(unwrap(model)):
        if kinds.is_norm(module) and id(module) not in held:
            _hold_norm(module, parent)
            held[id(module)] = path
            log.info("%s (%s) uses its running statistics from now on", path, type(module).__name__)
    return list(held.values())


def _hold_norm(module: nn.Module, parent: nn.Module | None) -> None:
    record = record_of(module) or Record()
    if not kinds.is_norm(module) or TOKEN in record.tokens:
        return
    if record.training is None:
        flag = hold.asked_mode(module)
        apart = parent is not None and flag != hold.asked_mode(parent)
        record = replace(record, training=flag, apart=apart)
    record = replace(record, owners=(*record.owners, Owner(TOKEN, False, True)))
    module.__dict__[RECORD] = record
    hold.hold(module)
