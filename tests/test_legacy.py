"""Checkpoints, certificates and caches that commit 58340af wrote (tests/legacy) still work."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tool_runs import tool

import pcdet_freeze
from pcdet_freeze.__main__ import main
from pcdet_freeze.freezing.verification.checkpoint_meta import FreezeMetadata

LEGACY = Path(__file__).with_name("legacy")
EXPECTED = json.loads((LEGACY / "expected.json").read_text())
PRETRAINED = LEGACY / "pretrained.pth"
CLOSE = 0.05
"""absolute tolerance of weights on a machine that rounds differently from the one that wrote the files"""
State = dict[str, Any]


@pytest.fixture(autouse=True)
def in_the_project_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The YAMLs of tests/legacy name their base by its path from the project's folder."""
    monkeypatch.chdir(root)


@pytest.fixture
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def load(path: Path) -> State:
    state: State = torch.load(path, weights_only=True)
    return state


def train(out: Path, config: str, *flags: object) -> int:
    base = ["--cfg_file", f"tests/legacy/{config}.yaml", "--output_dir", str(out), "--workers", "0"]
    return tool("train").main([*base, "--device", "cpu", "--fix_random_seed", "--num_epochs_to_eval", "0",
                               *map(str, flags)])  # fmt: skip


def checkpoint(out: Path, config: str, epoch: int) -> State:
    """The checkpoint that ``train(out, config)`` wrote after ``epoch``."""
    return load(out / "legacy" / config / "default" / "ckpt" / f"checkpoint_epoch_{epoch}.pth")


def tensors(state: Any, prefix: str = "") -> dict[str, torch.Tensor]:
    """All tensors of a nested state, by dotted name."""
    if isinstance(state, torch.Tensor):
        return {prefix: state}
    items = state.items() if isinstance(state, dict) else enumerate(state) if isinstance(state, list) else ()
    return {k: v for name, value in items for k, v in tensors(value, f"{prefix}.{name}").items()}


def same_bits(one: State, other: State) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(first[key].equal(second[key]) for key in first)


def digest(tensor: torch.Tensor) -> str:
    """As tests/legacy/README.md defines it."""
    array = np.ascontiguousarray(tensor.numpy())
    head = f"{tensor.dtype} {list(tensor.shape)} ".encode()
    return hashlib.sha256(head + array.tobytes()).hexdigest()


def state_digest(state: State) -> str:
    """As tests/legacy/README.md defines it."""
    lines = "".join(f"{name} {digest(state[name])}\n" for name in sorted(state))
    return hashlib.sha256(lines.encode()).hexdigest()


def test_the_checkpoints_are_as_they_were_written() -> None:
    for name, digests in EXPECTED["files"].items():
        assert state_digest(load(LEGACY / name)["model_state"]) == digests["model_state"], name
    frozen = load(LEGACY / "frozen_epoch_2.pth")["model_state"]
    assert {name: digest(frozen[name]) for name in EXPECTED["frozen tensors"]} == EXPECTED["frozen tensors"]


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_run_resumed_from_an_old_checkpoint_ends_as_the_run_without_a_break(tmp_path: Path) -> None:
    old = load(LEGACY / "frozen_epoch_2.pth")
    assert train(tmp_path / "whole", "frozen", "--pretrained_model", PRETRAINED) == 0
    assert train(tmp_path / "resumed", "frozen", "--ckpt", LEGACY / "frozen_epoch_2.pth") == 0
    half, whole = (checkpoint(tmp_path / "whole", "frozen", epoch) for epoch in (2, 4))
    resumed = checkpoint(tmp_path / "resumed", "frozen", 4)
    ends = whole, load(LEGACY / "frozen_epoch_4.pth")
    exact = same_bits(half["model_state"], old["model_state"])  # this machine rounds as that of the files
    for end in ends:
        for key in ("model_state", "optimizer_state") if exact else ():
            assert same_bits(resumed[key], end[key])
        for name, value in end["model_state"].items():
            torch.testing.assert_close(resumed["model_state"][name], value, rtol=0, atol=CLOSE)
    trained = set(EXPECTED["trained from epoch 4 on"])
    for name in EXPECTED["frozen tensors"]:
        assert same_bits(resumed["model_state"][name], old["model_state"][name]) == (name not in trained)


def test_h10_a_resume_freezes_for_the_epoch_of_the_checkpoint_before_the_optimizer_is_made(
    tmp_path: Path,
) -> None:
    assert train(tmp_path, "frozen", "--epochs", 5, "--ckpt", LEGACY / "frozen_epoch_4.pth") == 0
    end = checkpoint(tmp_path, "frozen", 5)
    names = [name for group in end["pcdet_freeze"]["optimizer_names"] for name in group]
    trained = names.index("backbone_2d.blocks.0.1.weight")  # since the fourth epoch
    assert end["optimizer_state"]["state"][trained]["step"] == 4


@pytest.mark.parametrize(("words", "code"), EXPECTED["verify, exit codes"].items())
def test_verify_returns_the_exit_code_that_it_returned_then(words: str, code: int) -> None:
    one, other, *names = words.split()
    try:
        found = main(["verify", str(LEGACY / one), str(LEGACY / other), *names])
    except SystemExit as end:
        found = int(end.code or 0)
    assert found == code


def test_verify_names_the_weight_that_was_changed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["verify", str(PRETRAINED), str(LEGACY / "changed.pth")])
    out = capsys.readouterr().out
    assert "1 of the 12" in out and "backbone_2d.blocks.0.1.weight" in out


def test_an_old_certificate_is_read_whole() -> None:
    stored = FreezeMetadata.of(load(LEGACY / "frozen_epoch_2.pth")).certificate
    assert stored is not None and stored.entries == ("vfe", "backbone_2d.blocks")
    assert set(stored.digests) == set(EXPECTED["frozen tensors"])


def test_a_weight_changed_after_writing_is_found_by_the_old_certificate(tmp_path: Path) -> None:
    state = load(LEGACY / "frozen_epoch_2.pth")
    state["model_state"]["backbone_2d.blocks.0.1.weight"][0, 0, 0, 0] += 1e-6
    torch.save(state, tmp_path / "changed.pth")
    assert train(tmp_path / "out", "frozen", "--ckpt", tmp_path / "changed.pth") == 1
    log = "".join(path.read_text() for path in tmp_path.rglob("train_*.log"))
    assert "CertificateError" in log and "backbone_2d.blocks.0.1.weight" in log


def test_stitch_writes_the_tensors_that_it_wrote_then(tmp_path: Path) -> None:
    words = ["stitch", "--trunk", str(PRETRAINED), "--out", str(tmp_path / "all.pth")]
    words += ["--take", f"segment_head,backbone_2d.segblocks,backbone_2d.seg_out_conv:{LEGACY}/segment.pth"]
    words += ["--take", f"lane_head,backbone_2d.laneblocks,backbone_2d.mixsegnet:{LEGACY}/lane.pth"]
    assert main(words) == 0
    assert same_bits(load(tmp_path / "all.pth")["model_state"], load(LEGACY / "stitched.pth")["model_state"])


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def train_with_cache(out: Path, cache: Path) -> State:
    """The end of the run of cached.yaml; its cache lies in ``cache``."""
    sets = ["--set", "MODEL.FREEZE.CACHE.FOLDER", cache]
    assert train(out, "cached", "--pretrained_model", PRETRAINED, *sets) == 0
    return checkpoint(out, "cached", 4)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_cache_of_another_version_is_left_alone_and_filled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pcdet_freeze, "__version__", "0.2.0")
    old = tmp_path / "cache" / "75b4632d342a23ce"
    shutil.copytree(LEGACY / "cache" / old.name, old)
    before = files_of(old)
    with_old = train_with_cache(tmp_path / "beside", tmp_path / "cache")
    anew = train_with_cache(tmp_path / "anew", tmp_path / "empty")
    assert same_bits(with_old["model_state"], anew["model_state"])
    assert files_of(old) == before and len(list((tmp_path / "cache").iterdir())) == 2
    log = next((tmp_path / "beside").rglob("train_*.log")).read_text()
    assert "a new cache" in log and "versions.pcdet-freeze" in log
