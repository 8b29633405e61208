"""Training forwards of a model with a frozen prefix, as cheap as they can be (F1, F5).

Nothing here changes a model: what runs quicker does so from the beginning of a training forward to its end,
and a recorded run on a copy has shown before that it may.

``trace`` records who reads what, ``planning`` decides what it allows, ``folding`` and ``siblings`` compute
several layers as one, ``forward`` puts all of it to work.
"""

from pcdet_freeze.freeze.fast.forward import FastForward
from pcdet_freeze.freeze.fast.planning import Plan, make_plan

__all__ = ["FastForward", "Plan", "make_plan"]
