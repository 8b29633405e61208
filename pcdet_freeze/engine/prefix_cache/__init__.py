"""The activation cache: what the frozen prefix puts out for each sample, kept on disk (FREEZE.CACHE, F7).

``key`` says what the outputs depend on, ``store`` keeps them in memory-mapped files, ``steps`` fills and
reads the store in training forwards, ``coming`` looks ahead, ``prefix_cache`` brings them together.
"""

from pcdet_freeze.engine.prefix_cache.cache import PrefixCache

__all__ = ["PrefixCache"]
