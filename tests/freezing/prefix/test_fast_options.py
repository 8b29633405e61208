"""F6: bf16, channels_last and torch.compile for the prefix are asked for; their difference is reported."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from fast_toys import frozen_model, image
from two_processes import HELPERS

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing import FreezePlan
from pcdet_freeze.freezing.plan import CacheOptions
from pcdet_freeze.freezing.prefix import Options, Replanner
from pcdet_freeze.freezing.prefix.validate import recorded
from pcdet_freeze.utils.tensors import relative_error

BLOCKS = ["backbone_2d.blocks"]


def outputs(
    options: Options, layout: torch.memory_format = torch.contiguous_format
) -> tuple[list[torch.Tensor], list[torch.Tensor], Replanner]:
    """What both blocks put out in a plain training forward, and in one with ``options``."""
    model, given = frozen_model(BLOCKS), image().contiguous(memory_format=layout)
    renewed = Replanner(model, options)
    renewed.prepare(given)
    blocks = [(str(i), block) for i, block in enumerate(model.backbone_2d.blocks)]
    with recorded(blocks) as plain:
        model(given)
    with recorded(blocks) as fast, renewed.fast:
        model(given).backward()
    return [plain["0"][0], plain["1"][0]], [fast["0"][0], fast["1"][0]], renewed


@pytest.mark.parametrize("fuse", [True, False])
def test_f6_a_bf16_prefix_returns_float32_and_reports_its_relative_error(fuse: bool) -> None:
    plain, fast, renewed = outputs(Options(fuse, dtype=torch.bfloat16))
    assert all(tensor.dtype == torch.float32 for tensor in fast)
    off = max(map(relative_error, plain, fast))
    assert 1e-4 < off < 3e-2 and renewed.plan.difference == pytest.approx(off)
    assert any(f"relative error {off:.1e}" in line for line in renewed.plan.lines())


def test_f6_a_bf16_prefix_folds_in_float64_and_rounds_once() -> None:
    _, _, renewed = outputs(Options(dtype=torch.bfloat16))
    assert len(renewed.fast.folds) == 2
    assert all(fold.weights()[0].dtype == torch.bfloat16 for fold in renewed.fast.folds)


def test_f6_under_autocast_the_outputs_of_a_bf16_prefix_stay_bf16() -> None:
    model = frozen_model(BLOCKS)
    renewed = Replanner(model, Options("force", dtype=torch.bfloat16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        renewed.prepare(image())
        with recorded([("0", model.backbone_2d.blocks[0])]) as found, renewed.fast:
            model(image())
    assert found["0"][0].dtype == torch.bfloat16


def test_f6_channels_last_stays_inside_the_prefix() -> None:
    plain, fast, renewed = outputs(Options(channels_last=True))
    assert all(tensor.is_contiguous() for tensor in fast)
    assert max(map(relative_error, plain, fast)) <= 2e-6
    weight = renewed.fast.folds[0].weights()[0]
    assert weight.is_contiguous(memory_format=torch.channels_last)


def test_f6_a_map_that_comes_channels_last_leaves_the_prefix_so() -> None:
    for options in (Options(channels_last=True), Options()):
        plain, fast, _ = outputs(options, torch.channels_last)
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in fast)
        assert max(map(relative_error, plain, fast)) <= 2e-6


def test_f6_an_evaluation_is_in_float32_for_all_options() -> None:
    model = frozen_model(BLOCKS)
    before = model.eval()(image())
    renewed = Replanner(model.train(), Options(dtype=torch.bfloat16, channels_last=True))
    renewed.prepare(image())
    with renewed.fast:
        model(image())
    model.backbone_2d.deblocks.load_state_dict(frozen_model(BLOCKS).backbone_2d.deblocks.state_dict())
    assert torch.equal(before, model.eval()(image()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [True, "graphs"])  # on a CPU, "graphs" captures none
def test_f6_a_compiled_prefix_has_its_norm_layers_folded(kind: bool | str) -> None:
    plain, fast, renewed = outputs(Options(compile=kind))
    assert renewed.plan.compiled == ("backbone_2d.blocks.0", "backbone_2d.blocks.1")
    assert max(map(relative_error, plain, fast)) <= 2e-6


NO_COMPILER = """
from fast_toys import frozen_model, image
from pcdet_freeze.freezing.prefix import Options, Replanner
renewed = Replanner(frozen_model(["backbone_2d.blocks"]), Options(compile=True))
renewed.prepare(image())
print(*renewed.plan.lines(), sep="\\n")
with renewed.fast:
    renewed.root(image())
"""


@pytest.mark.slow
def test_f6_without_a_compiler_the_prefix_runs_uncompiled_with_a_note(tmp_path: Path, root: Path) -> None:
    paths = [str(root), str(HELPERS)]
    missing = {"CXX": str(tmp_path / "none"), "CC": str(tmp_path / "none"), "PATH": "/nowhere"}
    env = {**os.environ, **missing, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(paths)}
    run = subprocess.run([sys.executable, "-c", NO_COMPILER], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "torch.compile does not work here" in run.stdout and "2 norm layers folded" in run.stdout


@pytest.mark.parametrize(
    ("key", "value"),
    [("PREFIX_DTYPE", "float16"), ("COMPILE", "yes"), ("CHANNELS_LAST", 1), ("COMPILE", None)],
)
def test_invalid_values_of_the_keys_are_errors(key: str, value: Any) -> None:
    with pytest.raises(FreezeError, match=f"FREEZE.{key} must be"):
        FreezePlan.from_cfg({"FREEZE": {key: value}})


def test_the_keys_become_options() -> None:
    block = {"FUSE": False, "PREFIX_DTYPE": "bfloat16", "COMPILE": True, "CHANNELS_LAST": True}
    assert Options.of(FreezePlan.from_cfg({"FREEZE": block})) == Options(False, torch.bfloat16, True, True)
    assert Options.of(FreezePlan.from_cfg({"FREEZE": {"COMPILE": "graphs"}})) == Options(compile="graphs")
    assert Options.of(FreezePlan()) == Options()


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (3, "CACHE must be the folder alone or a section such as"),
        ("", "FOLDER must be a folder; got ''"),
        ({"VARIANTS": 2}, "CACHE.FOLDER is required"),
        (
            {"FOLDER": "a", "FOLDERS": "b"},
            "CACHE.FOLDERS is not a key of this section, or is not implemented; did you mean FOLDER?",
        ),
        ({"FOLDER": "a", "VARIANTS": 0}, "VARIANTS must be a whole number, 1 or more; got 0"),
        ({"FOLDER": "a", "VARIANTS": True}, "got True"),
        ({"FOLDER": "a", "DTYPE": "float16"}, "DTYPE must be 'float32' or 'bfloat16'; got 'float16'"),
    ],
)
def test_f7_invalid_cache_settings_are_an_error(value: Any, said: str) -> None:
    with pytest.raises(FreezeError, match=re.escape(said)):
        FreezePlan.from_cfg({"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": ["vfe"], "FREEZE": {"CACHE": value}}})


def test_f7_a_folder_alone_is_a_float32_cache_of_data_that_is_not_random() -> None:
    plan = FreezePlan.from_cfg({"MODEL": {"NOT_TRAIN_IN_MULTI_TASK": ["vfe"], "FREEZE": {"CACHE": "a/b"}}})
    assert plan.cache == CacheOptions("a/b", None, "float32")


def test_f7_a_cache_without_frozen_parameters_is_an_error() -> None:
    with pytest.raises(FreezeError, match="with PARAMETERS: False they train: write CACHE: null"):
        FreezePlan(("vfe",), parameters=False, cache=CacheOptions("a"))
