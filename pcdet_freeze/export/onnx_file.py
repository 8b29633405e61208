"""ONNX files: written by torch.onnx, run by onnxruntime. The only file that imports them, lazily."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcdet_freeze.errors import DataError, PCDetFreezeError
from pcdet_freeze.export.raw_outputs import RawOutputs

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
OPSET = 18
"""version of ONNX's operators, of December 2022"""
FEWEST = 2
"""torch.export takes a size of 0 or 1 for a constant"""


def require_onnx() -> None:
    """Raise an error that names the extra if a package is not installed."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise PCDetFreezeError(
            f"export needs {', '.join(missing)}, not installed: pip install 'pcdet-freeze[onnx]'"
        )


def write_onnx(network: RawOutputs, inputs: Mapping[str, Tensor], path: Path) -> None:
    """Write ``network`` to ``path``; the numbers of pillars and points are free.

    Args:
        network: model in eval mode, on the CPU.
        inputs: example by name, with at least two pillars and points.

    Raises:
        DataError: fewer than two pillars or points.
    """
    few = {name: len(rows) for name, rows in inputs.items() if len(rows) < FEWEST}
    if few:
        raise DataError(f"export needs a frame with at least {FEWEST} pillars and points; got {few}")
    pillars, points = (
        torch.export.Dim("pillars", min=FEWEST),
        torch.export.Dim("number_of_points", min=FEWEST),
    )
    sizes = {name: {0: points if name == "points" else pillars} for name in inputs}
    with torch.no_grad(), _quiet():
        names = list(network(**inputs))
        program = torch.onnx.export(
            network,
            kwargs=dict(inputs),
            output_names=names,
            dynamic_shapes=sizes,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)


def run_onnx(path: Path, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name that onnxruntime computes on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    given = {value.name: inputs[value.name].numpy() for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    return {
        name: torch.from_numpy(value) for name, value in zip(names, session.run(None, given), strict=True)
    }


def read_onnx(path: Path) -> Any:
    """The ``onnx.ModelProto`` of a file."""
    import onnx

    return onnx.load(str(path))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress and the warnings of torch.onnx, which name no fault of the model."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)
