"""Digests of the outputs of a model over a whole data set."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from pcdet_freeze.freezing.checks.output_drift import plain_arithmetic
from pcdet_freeze.freezing.data_flow.module_graph import stages
from pcdet_freeze.freezing.eval_lock import eval_mode
from pcdet_freeze.freezing.verification.digest import tensor_digests
from pcdet_freeze.models import load_data_to_gpu
from pcdet_freeze.utils.distributed import unwrap
from pcdet_freeze.utils.tensors import tensors_with_path


@dataclass
class OutputDigest:
    """Digest of one output over all frames, in their order."""

    count: int = 0
    """of a prediction: rows (boxes, points); of a head: numbers in its raw maps"""
    _hash: Any = field(default_factory=lambda: hashlib.blake2b(digest_size=16), repr=False)

    def add(self, tensors: Iterable[tuple[str, torch.Tensor]], rows: bool) -> None:
        """Add the tensors of a batch or frame: names, dtypes, shapes and bits."""
        found = list(tensors)
        digests = tensor_digests([tensor for _, tensor in found])
        for (path, tensor), digest in zip(found, digests, strict=True):
            self._hash.update(f"{path}={digest};".encode())
            self.count += len(tensor) if rows and tensor.dim() else tensor.numel()

    def hexdigest(self) -> str:
        return self._hash.hexdigest()


class OutputDigests:
    """Digests of all outputs of a model over the frames that it predicts in eval mode and plain arithmetic.

    The names are those of the heads (raw outputs: the declared keys, and tensors that are kept for the loss)
    and the keys of the predictions (``pred_boxes``, ``pred_lane_map`` ...).

    Equal digests mean equal bits. Digests depend on device, thread count and batch size.
    """

    def __init__(self, model: nn.Module) -> None:
        self.found: dict[str, OutputDigest] = {}
        self._heads = [stage for stage in stages(unwrap(model)) if stage.has_loss]

    def add(self, batch: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> None:
        """Add a batch after the forward, and what the model returned."""
        for head in self._heads:
            kept = getattr(head.module, "forward_ret_dict", {})
            raw = {"kept": kept, **{key: batch.get(key) for key in sorted(head.writes)}}
            self.found.setdefault(head.name, OutputDigest()).add(tensors_with_path(raw), rows=False)
        for frame in predictions:
            for key, value in frame.items():
                self.found.setdefault(key, OutputDigest()).add(tensors_with_path(value), rows=True)


@torch.no_grad()
def output_digests(model: nn.Module, loader: Iterable[Any], device: torch.device) -> dict[str, OutputDigest]:
    """Name -> digest over all frames of ``loader``, see :class:`OutputDigests`."""
    root, digests = unwrap(model), OutputDigests(model)
    with eval_mode(root), plain_arithmetic():
        for batch in loader:
            load_data_to_gpu(batch, device)
            predictions, _ = root(batch)
            digests.add(batch, predictions)
    return digests.found


def to_plain(found: Mapping[str, OutputDigest]) -> dict[str, dict[str, Any]]:
    """Plain data, for JSON: name -> ``digest`` and ``count``."""
    return {name: {"digest": digest.hexdigest(), "count": digest.count} for name, digest in found.items()}
