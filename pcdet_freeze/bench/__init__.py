"""What freezing costs and saves: variants of one training step, measured side by side.

``scenes`` makes a batch out of nothing, ``variants`` makes trainers that differ in what they freeze,
``counting`` gives the exact figures of a step (FLOPs, bytes saved for backward, peak of live bytes, sizes),
``timing`` the timed ones, and ``steps``, ``holding``, ``certifying``, ``loading``,
``operators`` and ``scaling`` are the comparisons.
"""

from pcdet_freeze.bench.certifying import certificate_cost
from pcdet_freeze.bench.holding import holding_cost
from pcdet_freeze.bench.loading import loading_cost
from pcdet_freeze.bench.operators import operator_cost
from pcdet_freeze.bench.scaling import scaling_cost
from pcdet_freeze.bench.scenes import RandomScenes, make_batch
from pcdet_freeze.bench.steps import compare_steps
from pcdet_freeze.bench.variants import BUILT, Contender, build_contenders

__all__ = [
    "BUILT",
    "Contender",
    "RandomScenes",
    "build_contenders",
    "certificate_cost",
    "compare_steps",
    "holding_cost",
    "loading_cost",
    "make_batch",
    "operator_cost",
    "scaling_cost",
]
