"""The activation cache: outputs of the frozen prefix for each sample, on disk (FREEZE.CACHE, F7).

``key`` lists what the outputs depend on, ``store`` keeps them in memory-mapped files, ``step`` fills and
reads the store in training forwards, ``lookahead`` predicts the next batch, ``cache`` combines them.
"""

from pcdet_freeze.engine.prefix_cache.cache import PrefixCache

__all__ = ["PrefixCache"]
