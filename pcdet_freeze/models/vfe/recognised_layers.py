"""Which layers of a pillar encoder may run on rows of points in place of padded pillars."""

from __future__ import annotations

from torch import nn

from pcdet_freeze.freezing.eval_lock import base_class
from pcdet_freeze.utils.foreign_code import has_foreign_code

NORMS = (nn.BatchNorm1d, nn.SyncBatchNorm)


def is_recognised(layer: nn.Module, kind: type[nn.Module]) -> bool:
    """Whether ``layer`` is a ``kind`` of Linear and BatchNorm1d (or SyncBatchNorm) as they were built.

    Not where a part is of another class (a subclass, a parametrization, a wrapper), or has a hook or a
    forward of the user, which may depend on the shape. Hooks and forwards of this package do not.
    """
    linear, norm = layer._modules.get("linear"), layer._modules.get("norm")
    parts = [layer, linear] if norm is None else [layer, linear, norm]
    return (
        len(layer._modules) == len(parts) - 1
        and base_class(layer) is kind
        and type(linear) is nn.Linear
        and (norm is None or base_class(norm) in NORMS)
        and not any(map(has_foreign_code, parts))
    )
