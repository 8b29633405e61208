"""Bytes of a cached frame, and the time to write and to read it, for each kind of compression."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.bench.costs.empty_space import block_outputs
from pcdet_freeze.bench.timing import Spread
from pcdet_freeze.engine.prefix_cache.compression import Compression, bytes_of

Row = dict[str, Any]
KINDS = [Compression(codec, shuffle) for codec in ("lz4", "zstd") for shuffle in (False, True)]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def measure_cache_size(model: nn.Module, batch: dict[str, Any], rounds: int) -> list[Row]:
    """Return a row for each storage dtype and compression of the outputs of ``backbone_2d.blocks``.

    ``bytes``: of each frame; ``write_seconds`` and ``read_seconds``: process time of one thread for one
    frame, without the disk. Each frame is read back and compared to the bit.

    Raises:
        ConfigError: the model has no PointPillars backbone.
    """
    Compression("lz4").pack(torch.zeros(1))  # imports blosc2
    maps = [value.detach().cpu() for value in block_outputs(model, batch)]
    rows = []
    for name, dtype in DTYPES.items():
        frames = [[value[number].to(dtype) for value in maps] for number in range(len(maps[0]))]
        raw = sum(value.nbytes for value in frames[0])
        rows += [{"dtype": name, "raw": raw, **_measured(kind, frames, rounds)} for kind in KINDS]
    return rows


def _measured(kind: Compression, frames: list[list[Tensor]], rounds: int) -> Row:
    sizes, writes, reads = [], [], []
    for _ in range(rounds):
        for frame in frames:
            begin = time.process_time()
            packed = [kind.pack(value) for value in frame]
            writes.append(time.process_time() - begin)
            into = [torch.empty_like(value) for value in frame]
            begin = time.process_time()
            for data, value in zip(packed, into, strict=True):
                kind.unpack(data, value)
            reads.append(time.process_time() - begin)
            sizes.append(sum(map(len, packed)))
            equal = all((bytes_of(a) == bytes_of(b)).all() for a, b in zip(frame, into, strict=True))
            assert equal, "compression must be lossless"
    return {
        "codec": kind.codec,
        "shuffle": kind.shuffle,
        "bytes": sizes[: len(frames)],
        "write_seconds": Spread.of(writes).median,
        "read_seconds": Spread.of(reads).median,
    }
