"""Recipe of the deterministic weights and inputs behind the golden figures.

It contains no code of OpenPCDet and needs only numpy, torch and zlib.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def fill_state_dict(shapes: Mapping[str, tuple[Sequence[int], bool]]) -> dict[str, torch.Tensor]:
    """Draw the tensors of a state dict, each from a generator seeded with ``zlib.crc32(key.encode())``.

    One draw of the whole shape per key, in float32:

    * ``*.running_mean``: ``0.05 * randn``; ``*.running_var``: ``1 + 0.1 * rand``;
    * integer tensors (``num_batches_tracked``, ``global_step``): 0;
    * ``P.weight`` where ``P.running_mean`` is also a key (BatchNorm): ``1 + 0.05 * randn``;
    * everything else, biases too: ``0.05 * randn``.

    Args:
        shapes: key -> (shape, whether the tensor is floating point).
    """
    out = {}
    for key in sorted(shapes):
        shape, is_float = shapes[key]
        if not is_float:
            out[key] = torch.zeros(tuple(shape), dtype=torch.int64)
            continue
        generator = torch.Generator(device="cpu").manual_seed(zlib.crc32(key.encode()))
        if key.endswith(".running_var"):
            out[key] = 1 + 0.1 * torch.rand(tuple(shape), generator=generator)
            continue
        value = 0.05 * torch.randn(tuple(shape), generator=generator)
        is_norm = key.endswith(".weight") and key[: -len("weight")] + "running_mean" in shapes
        out[key] = 1 + value if is_norm else value
    return out


def load_recipe(model: Any) -> Any:
    """Load the recipe's weights into ``model`` and return it."""
    state = model.state_dict()
    values = fill_state_dict({k: (tuple(v.shape), v.is_floating_point()) for k, v in state.items()})
    model.load_state_dict({key: values[key].to(state[key].dtype) for key in state}, strict=True)
    return model


def make_points(seed: int, n: int, pc_range: Sequence[float], num_extra: int = 1) -> np.ndarray:
    """(n, 3 + num_extra) float32 points, uniform in the range shrunk by 1 mm on each side.

    ``RandomState(seed).uniform`` draws in float64; columns beyond x, y, z stay uniform in [0, 1).
    """
    points = np.random.RandomState(seed).uniform(size=(n, 3 + num_extra))
    low = np.asarray(pc_range[:3], dtype=np.float64) + 1e-3
    high = np.asarray(pc_range[3:], dtype=np.float64) - 1e-3
    points[:, :3] = low + points[:, :3] * (high - low)
    return points.astype(np.float32)


def clustered_points(
    seed: int, n: int, pc_range: Sequence[float], gt_boxes: Any, num_extra: int = 1, per_box: int = 40
) -> np.ndarray:
    """`make_points` with the first ``len(gt_boxes) * per_box`` points moved inside the boxes.

    local = (uniform - 0.5) * size, rotated by the heading, plus the centre; the uniform numbers are those
    of ``RandomState(seed + 1)``.
    """
    points = make_points(seed, n, pc_range, num_extra)
    random = np.random.RandomState(seed + 1)
    start = 0
    for box in np.asarray(gt_boxes, dtype=np.float64):
        local = (random.uniform(size=(per_box, 3)) - 0.5) * box[3:6]
        cos, sin = np.cos(box[6]), np.sin(box[6])
        x = local[:, 0] * cos - local[:, 1] * sin + box[0]
        y = local[:, 0] * sin + local[:, 1] * cos + box[1]
        points[start : start + per_box, 0:3] = np.stack([x, y, local[:, 2] + box[2]], 1).astype(np.float32)
        start += per_box
    low = np.asarray(pc_range[:3], dtype=np.float64) + 1e-3
    high = np.asarray(pc_range[3:], dtype=np.float64) - 1e-3
    points[:, :3] = np.clip(points[:, :3], low, high).astype(np.float32)
    return points


def sample_indices(numel: int, n: int = 64) -> list[int]:
    """``n`` fixed flat indices in C order: ``(i * 2654435761) % numel``."""
    return [(i * 2654435761) % max(numel, 1) for i in range(min(n, numel))]


def summary(values: Any, n: int = 64) -> dict[str, Any]:
    """Shape, dtype, moments and ``n`` samples of a tensor or array, accumulated in float64."""
    tensor = values if isinstance(values, torch.Tensor) else torch.from_numpy(np.asarray(values))
    tensor = tensor.detach().cpu()
    flat = tensor.double().contiguous().reshape(-1)
    return {
        "shape": list(tensor.shape),
        "dtype": str(tensor.dtype).replace("torch.", ""),
        "sum": float(flat.sum()),
        "abs_sum": float(flat.abs().sum()),
        "mean": float(flat.mean()) if flat.numel() else 0.0,
        "std": float(flat.std(unbiased=False)) if flat.numel() else 0.0,
        "samples": [float(flat[i]) for i in sample_indices(flat.numel(), n)],
    }


def sort_rows(coords: Any, *arrays: Any) -> list[np.ndarray]:
    """Sort rows of sparse tensors lexicographically by ``coords``, first column most significant."""
    sorted_by = _array(coords)
    order = np.lexsort(tuple(sorted_by[:, i] for i in reversed(range(sorted_by.shape[1]))))
    return [sorted_by[order], *(_array(values)[order] for values in arrays)]


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
