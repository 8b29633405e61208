"""The folder that ``export`` writes: network, a stored frame, anchors, digests and a README."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcdet_freeze.errors import ConfigError, DataError, OutputError
from pcdet_freeze.export.graph_digest import head_digests
from pcdet_freeze.export.onnx_file import OPSET, read_onnx, run_onnx, write_onnx
from pcdet_freeze.export.raw_outputs import RawOutputs
from pcdet_freeze.models.dense_heads.anchor_head import AnchorHead

TOLERANCE = 1e-4
NETWORK, FRAME, SUMMARY, README = "model.onnx", "frame.npz", "export.json", "README.md"
MEANINGS = {
    "voxels": "points x, y, z (metres), ... of each pillar, padded with zero rows",
    "voxel_num_points": "points of each pillar, without padding",
    "voxel_coords": "[sample, z, y, x] of each pillar, in cells",
    "points": "[sample, x, y, z, ...] of all points in range, metres",
}

README_TEXT = f"""\
# ONNX export

{{source}}

`{NETWORK}` (opset {OPSET}) computes the raw outputs of the heads from the pillars of a frame. The first
size of each input is free. Voxelisation comes before it; the decoding of boxes and NMS come after it.

## Inputs

| name | type | shape of the stored frame | meaning |
| --- | --- | --- | --- |
{{inputs}}

## Outputs

| name | type | shape of the stored frame | largest error |
| --- | --- | --- | --- |
{{outputs}}

Errors are those of onnxruntime against torch on `{FRAME}`, which has these inputs and the outputs of torch.
{{anchors}}
## Digests

Equal digests of a head mean the same operators with the same weights, whatever other heads the file has
(`pcdet-freeze export --against FOLDER`).

| head | SHA-256 |
| --- | --- |
{{digests}}
"""
ANCHORS_TEXT = """
`{file}`: anchors of `{head}`, (A, 7) [x, y, z, dx, dy, dz, heading], metres and radians, in the order of its
outputs.
"""


@dataclass(frozen=True)
class Export:
    """What an export wrote."""

    digests: Mapping[str, str]
    """SHA-256 of graph and weights by head"""
    errors: Mapping[str, float]
    """largest difference between torch and onnxruntime by output, on the stored frame"""


def write_export(network: RawOutputs, batch_dict: Mapping[str, Any], folder: Path, source: str) -> Export:
    """Export ``network`` to ``folder`` and compare it with torch on the frames of ``batch_dict``.

    Args:
        batch_dict: batch on the CPU; it is the stored frame.
        source: sentence of the README: from what the network was exported.

    Raises:
        OutputError: outputs of onnxruntime differ from those of torch by more than 1e-4.
    """
    folder.mkdir(parents=True, exist_ok=True)
    inputs = network.inputs_of(dict(batch_dict))
    with torch.no_grad():
        outputs = network(**inputs)
    write_onnx(network, inputs, folder / NETWORK)
    found = Export(
        head_digests(read_onnx(folder / NETWORK)), _errors(outputs, run_onnx(folder / NETWORK, inputs))
    )
    np.savez_compressed(
        folder / FRAME, **{name: value.numpy() for name, value in {**inputs, **outputs}.items()}
    )
    anchors = _write_anchors(network, folder)
    summary = {"digests": dict(found.digests), "errors": dict(found.errors), "opset": OPSET}
    (folder / SUMMARY).write_text(json.dumps(summary, indent=1) + "\n")
    (folder / README).write_text(_readme(source, inputs, outputs, anchors, found))
    wrong = {name: error for name, error in found.errors.items() if not error <= TOLERANCE}
    if wrong:
        raise OutputError(
            f"outputs of onnxruntime may differ from those of torch by {TOLERANCE:g} at most; got {wrong}. "
            f"Do not use {folder / NETWORK}."
        )
    return found


def read_digests(folder: Path) -> dict[str, str]:
    """Digests by head of an earlier export; raises ConfigError where ``folder`` is none."""
    try:
        digests = json.loads((folder / SUMMARY).read_text())["digests"]
        return {str(head): str(digest) for head, digest in digests.items()}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"--against must be a folder that `pcdet-freeze export` wrote, with {SUMMARY}; got {folder} "
            f"({type(error).__name__}: {error})"
        ) from error


def _errors(expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, float]:
    if expected.keys() != found.keys():
        raise DataError(f"the ONNX file must have the outputs {list(expected)}; got {list(found)}")
    return {name: float((value - found[name]).abs().max()) for name, value in expected.items()}


def _write_anchors(network: RawOutputs, folder: Path) -> dict[str, str]:
    """File name of the anchors of each anchor head."""
    files: dict[str, str] = {}
    for name in network.model.module_names:
        head = getattr(network.model, name)
        if isinstance(head, AnchorHead):
            files[name] = f"{name}_anchors.npy"
            np.save(folder / files[name], head.anchor_generator.all(torch.device("cpu")).numpy())
    return files


def _readme(
    source: str,
    inputs: Mapping[str, Tensor],
    outputs: Mapping[str, Tensor],
    anchors: Mapping[str, str],
    found: Export,
) -> str:
    """Inputs, outputs and files, as Markdown."""
    return README_TEXT.format(
        source=source,
        inputs=_table((name, _type(value), _shape(value), MEANINGS[name]) for name, value in inputs.items()),
        outputs=_table(
            (name, _type(value), _shape(value), f"{found.errors[name]:.1e}")
            for name, value in outputs.items()
        ),
        anchors="".join(ANCHORS_TEXT.format(head=head, file=file) for head, file in anchors.items()),
        digests=_table(found.digests.items()),
    )


def _table(rows: Iterable[Iterable[str]]) -> str:
    """Rows of a Markdown table; the first column is code."""
    return "\n".join(f"| {' | '.join([f'`{first}`', *others])} |" for first, *others in rows)


def _type(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape))
