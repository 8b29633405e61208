"""What freezing costs and saves: variants of one training step, measured side by side.

``random_scenes`` makes a batch without a data set, ``variants`` builds trainers that differ in what they
freeze (``other_packages``: as lightning and timm do), ``exact_figures`` counts FLOPs and bytes, ``timing``
runs interleaved rounds and ``tables`` prints. The comparisons are ``steps`` (variants of a step),
``freeze_overhead``, ``certificate_cost``, ``data_loading``, ``operators``, ``scaling``, ``empty_space`` and
``cache_size``.
"""

from pcdet_freeze.bench.cache_size import measure_cache_size
from pcdet_freeze.bench.certificate_cost import time_certificate
from pcdet_freeze.bench.data_loading import measure_data_loading
from pcdet_freeze.bench.empty_space import measure_empty_space
from pcdet_freeze.bench.freeze_overhead import measure_freeze_overhead
from pcdet_freeze.bench.operators import measure_operators
from pcdet_freeze.bench.random_scenes import RandomScenes, make_batch
from pcdet_freeze.bench.scaling import measure_scaling
from pcdet_freeze.bench.steps import compare_steps
from pcdet_freeze.bench.variants import BUILT, Contender, build_contenders, settle_statistics

__all__ = [
    "BUILT",
    "Contender",
    "RandomScenes",
    "build_contenders",
    "compare_steps",
    "make_batch",
    "measure_cache_size",
    "measure_data_loading",
    "measure_empty_space",
    "measure_freeze_overhead",
    "measure_operators",
    "measure_scaling",
    "settle_statistics",
    "time_certificate",
]
