"""Training forwards of a model with a frozen prefix, as cheap as they can be (F1, F5, F6).

Nothing here changes a model: what runs quicker does so from the beginning of a training forward to its end,
and recorded runs of a copy have shown before that it may.

``trace`` records who reads what, ``planning`` decides what that allows, ``trial`` compares both ways on the
copy, ``folding``, ``siblings``, ``prefix`` and ``compiled`` are the quicker ways, ``forward`` puts them to
work, ``renewal`` keeps a plan up to date.
"""

from pcdet_freeze.freezing.prefix.fast_forward import FastForward
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan
from pcdet_freeze.freezing.prefix.replanner import Replanner
from pcdet_freeze.freezing.prefix.validate import plan_for

__all__ = ["FastForward", "Options", "Plan", "Replanner", "plan_for"]
