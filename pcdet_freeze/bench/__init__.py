"""What freezing costs and saves: variants of one training step, measured side by side.

``random_scenes`` makes a batch without a data set, ``subject`` the model and batch that are measured,
``variants`` trainers that differ in what they freeze (``other_packages``: as lightning and timm do).
``exact_figures`` counts FLOPs and bytes, ``timing`` runs interleaved rounds and ``tables`` prints. The
comparisons are ``steps`` (variants of a step), ``freeze_overhead``, ``guard_cost``, ``certificate_cost``,
``data_loading``, ``operators``, ``scaling``, ``empty_space``, ``cache_size`` and ``roofline``;
``whole_training`` measures processes of their own.
"""

from pcdet_freeze.bench.costs.cache_size import measure_cache_size
from pcdet_freeze.bench.costs.certificate_cost import time_certificate
from pcdet_freeze.bench.costs.data_loading import measure_data_loading
from pcdet_freeze.bench.costs.empty_space import measure_empty_space
from pcdet_freeze.bench.costs.evaluation_cost import measure_evaluation
from pcdet_freeze.bench.costs.freeze_overhead import measure_freeze_overhead
from pcdet_freeze.bench.costs.guard_cost import measure_guard_cost
from pcdet_freeze.bench.costs.operators import measure_operators
from pcdet_freeze.bench.random_scenes import RandomScenes, make_batch
from pcdet_freeze.bench.roofline import roofline
from pcdet_freeze.bench.scaling import measure_scaling
from pcdet_freeze.bench.steps import compare_steps
from pcdet_freeze.bench.variants import BUILT, Contender, build_contenders, settle_statistics
from pcdet_freeze.bench.whole_runs.whole_training import WholeTraining, measure_allocator, measure_parts

__all__ = [
    "BUILT",
    "Contender",
    "RandomScenes",
    "WholeTraining",
    "build_contenders",
    "compare_steps",
    "make_batch",
    "measure_allocator",
    "measure_cache_size",
    "measure_data_loading",
    "measure_empty_space",
    "measure_evaluation",
    "measure_freeze_overhead",
    "measure_guard_cost",
    "measure_operators",
    "measure_parts",
    "measure_scaling",
    "roofline",
    "settle_statistics",
    "time_certificate",
]
