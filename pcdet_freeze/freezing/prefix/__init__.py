"""Fast training forwards of a model with a frozen prefix (F1, F5, F6).

The frozen prefix is every call of a frozen module whose inputs depend on nothing trainable. Module forwards
are patched for the duration of one training forward; the model itself is never changed, and runs of a copy
have shown before that the patched forward gives the same outputs.

``tracer`` records which call reads which output, ``planner`` makes a plan from that, ``validate`` compares
the plan with the plain forward on a copy. ``no_grad_call``, ``fold_bn``, ``siblings`` and ``compile`` are the
replacements, ``fast_forward`` patches them in, ``replanner`` renews the plan when the freeze changes.
``boundary``, ``boundary_check`` and ``cached_forward`` are for the cache of the prefix's outputs (F7).
"""

from pcdet_freeze.freezing.prefix.fast_forward import FastForward
from pcdet_freeze.freezing.prefix.options import Options
from pcdet_freeze.freezing.prefix.planner import Plan
from pcdet_freeze.freezing.prefix.replanner import Replanner
from pcdet_freeze.freezing.prefix.validate import plan_for

__all__ = ["FastForward", "Options", "Plan", "Replanner", "plan_for"]
