"""F7 on a GPU: what was stored is what is read, and it is read to where the model is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from cache_runs import cache_of, cfg_with, keep, run, trainer_of
from test_cache_runs import Watch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
]
GPU = torch.device("cuda")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_f7_on_cuda_a_full_cache_is_read_in_place_of_the_prefix(tmp_path: Path, dtype: str) -> None:
    cfg, watch = cfg_with(keep(tmp_path, 1, DTYPE=dtype)), Watch()
    run(trainer_of(cfg, device=GPU))
    trainer = trainer_of(cfg, [watch], device=GPU)
    run(trainer)
    store = cache_of(trainer).store
    assert store is not None and store.filled == 6 and watch.computed == [1]
    for slot in store.slots:
        there, here = (store.read(slot, [4, 1], device) for device in (GPU, torch.device("cpu")))
        assert there.is_cuda and torch.equal(there.cpu(), here)
