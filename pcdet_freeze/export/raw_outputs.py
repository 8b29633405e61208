"""RawOutputs: a detector from voxels to the raw outputs of its heads, without decoding and NMS."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.models.dense_heads.anchor_head import AnchorHead
from pcdet_freeze.models.dense_heads.center_head import CenterHead
from pcdet_freeze.models.map_to_bev import PointPillarScatter
from pcdet_freeze.models.vfe.pillar_vfe import PillarVFE

PILLARS = ("voxels", "voxel_num_points", "voxel_coords")
INTEGERS = ("voxel_num_points", "voxel_coords")


class RawOutputs(nn.Module):
    """The network of a PointPillar-type model in eval mode, as one function of tensors.

    Outputs are named by head and key: ``dense_head.cls_preds``, ``segment_head.point_logits``. Those of a
    head are what it computes before boxes are decoded, scores are thresholded, or classes are chosen.

    Args:
        model: Detector3DTemplate of PillarVFE, PointPillarScatter, a 2D backbone and heads; set to eval mode.
        batch_size: number of samples in a forward.

    Raises:
        ConfigError: the model has another encoder, whose operators ONNX does not have.
    """

    def __init__(self, model: Any, batch_size: int) -> None:
        super().__init__()
        _require_pillars(model)
        self.model, self.batch_size = model.eval(), batch_size
        heads = [getattr(model, name) for name in model.module_names]
        self.input_names = PILLARS + (("points",) if any("points" in head.reads for head in heads) else ())

    def inputs_of(self, batch_dict: dict[str, Any]) -> dict[str, Tensor]:
        """The inputs in a batch: numbers and cells as int64, all else as float32.

        voxels (M, P, C), voxel_num_points (M,), voxel_coords (M, 4) [sample, z, y, x] in cells, and where a
        head reads them points (N, 1 + C) [sample, x, y, z, ...]; metres.
        """
        return {
            name: batch_dict[name].to(torch.int64 if name in INTEGERS else torch.float32)
            for name in self.input_names
        }

    def forward(
        self, voxels: Tensor, voxel_num_points: Tensor, voxel_coords: Tensor, points: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Raw outputs of all heads by name."""
        batch: dict[str, Any] = {"batch_size": self.batch_size, "points": points}
        batch |= dict(zip(PILLARS, (voxels, voxel_num_points, voxel_coords), strict=True))
        found: dict[str, Tensor] = {}
        for name in self.model.module_names:
            module = getattr(self.model, name)
            if hasattr(module, "get_loss"):
                found |= {f"{name}.{key}": value for key, value in _outputs_of(module, batch).items()}
            else:
                batch = module(batch)
        return found


def _outputs_of(head: Any, batch: dict[str, Any]) -> dict[str, Tensor]:
    """Raw outputs of one head; ``batch`` may gain keys."""
    if isinstance(head, AnchorHead):
        return _flat(head.predict(batch["spatial_features_2d"]))
    if isinstance(head, CenterHead):
        shared = head.shared_conv(batch["spatial_features_2d"])
        return _flat({f"head_{number}": part(shared) for number, part in enumerate(head.heads_list)})
    given = set(batch)
    batch = head(batch)
    return {key: batch[key] for key in batch if key not in given}


def _flat(outputs: Any, prefix: str = "") -> dict[str, Tensor]:
    """Tensors in nested dicts and lists by dotted name."""
    if isinstance(outputs, Tensor):
        return {prefix: outputs}
    pairs = outputs.items() if isinstance(outputs, dict) else enumerate(outputs)
    flat: dict[str, Tensor] = {}
    for key, value in pairs:
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def _require_pillars(model: Any) -> None:
    modules = [getattr(model, name) for name in model.module_names]
    kinds = [type(module).__name__ for module in modules]
    if not any(isinstance(module, PillarVFE) for module in modules):
        raise ConfigError(f"export needs a model with MODEL.VFE.NAME PillarVFE; got {', '.join(kinds)}")
    if not any(isinstance(module, PointPillarScatter) for module in modules):
        raise ConfigError(
            f"export needs a model with MODEL.MAP_TO_BEV.NAME PointPillarScatter; got {', '.join(kinds)}"
        )
