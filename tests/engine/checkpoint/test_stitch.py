"""Stitching: heads trained apart on one frozen trunk give what training them in sequence gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pcdet_freeze.__main__ import main
from pcdet_freeze.cli.stitch import read_take
from pcdet_freeze.engine.checkpoint.io import save_checkpoint
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing import compare_states, freeze
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

TRUNK = ["vfe", "backbone_2d.blocks", "dense_head"]
SEGMENT = ["segment_head", "backbone_2d.segblocks"]
LANE = ["lane_head"]


def layer() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))


class Anchors(nn.Linear):
    """A head with a buffer that no state_dict holds."""

    def __init__(self, width: float = 1.0) -> None:
        super().__init__(3, 1)
        self.register_buffer("anchors", torch.full((2,), width), persistent=False)


class Toy(nn.Module):
    """A trunk with three heads, one of which has a branch of its own."""

    def __init__(self, *heads: str) -> None:
        super().__init__()
        self.register_buffer("global_step", torch.zeros(1, dtype=torch.long))
        self.vfe = layer()
        self.backbone_2d = nn.ModuleDict({"blocks": layer()})
        self.dense_head = Anchors()
        if "segment_head" in heads:
            self.backbone_2d["segblocks"] = layer()
            self.segment_head = nn.Linear(3, 2)
        if "lane_head" in heads:
            self.lane_head = nn.Linear(3, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        low = self.backbone_2d["blocks"](self.vfe(x))
        found = {"dense_head": self.dense_head(low)}
        if hasattr(self, "segment_head"):
            found["segment_head"] = self.segment_head(self.backbone_2d["segblocks"](low))
        if hasattr(self, "lane_head"):
            found["lane_head"] = self.lane_head(low)
        return found


def trained(before: Path | None, path: Path, heads: list[str], held: list[str]) -> Path:
    """A stage: from ``before``, all but ``held`` trains for three steps; writes ``path``."""
    torch.manual_seed(0)
    model = Toy("segment_head", "lane_head")  # a head begins alike whatever other heads there are
    for name in {"segment_head", "lane_head"} - set(heads):
        delattr(model, name)
    if "segment_head" not in heads:
        del model.backbone_2d["segblocks"]
    if before is not None:
        model.load_state_dict(load_checkpoint(before)["model_state"], strict=False)
    ours: dict[str, Any] = {}
    if held:
        ours["freeze"] = {"certificate": freeze(model, held).certificate().to_plain()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for step in range(3):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        sum((out**2).mean() for name, out in model.train()(x).items() if name not in held).backward()
        optimizer.step()
        model.global_step += 1
    save_checkpoint({"model_state": model.state_dict(), CHECKPOINT_KEY: ours}, path)
    return path


@pytest.fixture
def det(tmp_path: Path) -> Path:
    return trained(None, tmp_path / "det.pth", [], [])


@pytest.fixture
def seg(tmp_path: Path, det: Path) -> Path:
    return trained(det, tmp_path / "seg.pth", ["segment_head"], TRUNK)


@pytest.fixture
def lane(tmp_path: Path, det: Path) -> Path:
    return trained(det, tmp_path / "lane.pth", ["lane_head"], TRUNK)


def stitched(det: Path, seg: Path, lane: Path, out: Path) -> int:
    words = ["--trunk", det, "--take", f"{','.join(SEGMENT)}:{seg}", "--take", f"lane_head:{lane}", "--out"]
    return main(["stitch", *map(str, words), str(out)])


def state(path: Path) -> dict[str, Any]:
    return load_checkpoint(path)["model_state"]


def test_it_gives_the_same_outputs_as_training_in_sequence(
    det: Path, seg: Path, lane: Path, tmp_path: Path
) -> None:
    both = ["segment_head", "lane_head"]
    sequence = trained(seg, tmp_path / "sequence.pth", both, [*TRUNK, *SEGMENT])
    assert stitched(det, seg, lane, tmp_path / "all.pth") == 0
    outputs = []
    for path in (sequence, tmp_path / "all.pth"):
        model = Toy(*both)
        model.load_state_dict(state(path), strict=True)
        outputs.append(model.eval()(torch.randn(5, 3, generator=torch.Generator().manual_seed(9))))
    for name, found in outputs[0].items():
        assert torch.equal(found, outputs[1][name]), name
    assert compare_states(state(sequence), state(tmp_path / "all.pth"), [*TRUNK, *SEGMENT, *LANE]) == []


def test_the_result_is_a_checkpoint_that_verifies_against_the_trunk(
    det: Path, seg: Path, lane: Path, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "all.pth"
    assert stitched(det, seg, lane, out) == 0
    told = capsys.readouterr().out
    assert f"2 tensors of {lane}: lane_head" in told and "note" not in told
    assert main(["verify", str(det), str(out)]) == 0
    model = Toy("segment_head", "lane_head")
    model.load_state_dict(state(out), strict=True)
    assert model.global_step == load_checkpoint(det)["model_state"]["global_step"]


def test_trunks_that_differ_are_refused_with_the_tensors(
    det: Path, seg: Path, tmp_path: Path, capsys: Any
) -> None:
    moved = trained(det, tmp_path / "moved.pth", ["lane_head"], ["vfe", "dense_head"])
    assert stitched(det, seg, moved, tmp_path / "all.pth") == 1
    told = capsys.readouterr().err
    assert f"{moved}: backbone_2d.blocks.0.weight changed" in told
    assert f"{moved}: backbone_2d.blocks.1.running_mean changed" in told
    assert str(seg) not in told and not (tmp_path / "all.pth").exists()


def test_a_hidden_buffer_that_differs_between_two_certificates_is_seen(
    det: Path, seg: Path, lane: Path, tmp_path: Path, capsys: Any
) -> None:
    checkpoint = load_checkpoint(lane)
    digests = checkpoint[CHECKPOINT_KEY]["freeze"]["certificate"]["digests"]
    digests["dense_head.anchors"] = digests["dense_head.anchors"][:-1] + "x"
    save_checkpoint(checkpoint, lane)
    assert stitched(det, seg, lane, tmp_path / "all.pth") == 1
    assert "dense_head.anchors changed" in capsys.readouterr().err


def test_a_file_that_is_not_what_its_certificate_says_is_refused(
    det: Path, seg: Path, lane: Path, tmp_path: Path, capsys: Any
) -> None:
    checkpoint = load_checkpoint(lane)
    checkpoint["model_state"]["vfe.0.bias"] += 1
    save_checkpoint(checkpoint, lane)
    assert stitched(det, seg, lane, tmp_path / "all.pth") == 1
    assert "vfe.0.bias changed" in capsys.readouterr().err


def test_a_head_that_a_source_does_not_have_is_not_asked_for(det: Path, seg: Path, tmp_path: Path) -> None:
    checkpoint = load_checkpoint(seg)
    for name in ("dense_head.weight", "dense_head.bias"):
        del checkpoint["model_state"][name]
    del checkpoint[CHECKPOINT_KEY]["freeze"]
    save_checkpoint(checkpoint, seg)
    words = ["--trunk", det, "--take", f"{','.join(SEGMENT)}:{seg}", "--out", tmp_path / "all.pth"]
    assert main(["stitch", *map(str, words)]) == 0
    assert compare_states(state(det), state(tmp_path / "all.pth"), ["dense_head"]) == []


def test_a_part_of_the_trunk_that_a_source_lacks_is_refused(
    det: Path, seg: Path, lane: Path, tmp_path: Path, capsys: Any
) -> None:
    checkpoint = load_checkpoint(lane)
    del checkpoint["model_state"]["backbone_2d.blocks.0.bias"], checkpoint[CHECKPOINT_KEY]["freeze"]
    save_checkpoint(checkpoint, lane)
    assert stitched(det, seg, lane, tmp_path / "all.pth") == 1
    assert f"{lane}: backbone_2d.blocks.0.bias is missing" in capsys.readouterr().err


def test_what_stays_behind_is_told(det: Path, seg: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["--trunk", det, "--take", f"segment_head:{seg}", "--out", tmp_path / "all.pth"]
    assert main(["stitch", *map(str, words)]) == 0
    assert "7 tensors stay behind in it, and are in no other part: backbone_2d.segblocks" in (
        capsys.readouterr().out
    )


def test_an_entry_that_the_file_does_not_have_is_an_error_with_the_nearest(
    det: Path, seg: Path, lane: Path, tmp_path: Path, capsys: Any
) -> None:
    words = ["--trunk", det, "--take", f"segment_hed:{seg}", "--out", tmp_path / "all.pth"]
    assert main(["stitch", *map(str, words)]) == 1
    assert f"{seg}, but it has no 'segment_hed'. Nearest: segment_head" in capsys.readouterr().err


def test_one_tensor_from_two_files_is_an_error(det: Path, seg: Path, tmp_path: Path, capsys: Any) -> None:
    copy = tmp_path / "copy.pth"
    copy.write_bytes(seg.read_bytes())
    words = ["--trunk", det, "--take", f"segment_head:{seg}", "--take", f"segment_head:{copy}"]
    assert main(["stitch", *map(str, words), "--out", str(tmp_path / "all.pth")]) == 1
    assert f"segment_head.weight is taken from {seg} and {copy}" in capsys.readouterr().err


def test_a_tensor_that_is_named_twice_from_one_file_is_taken_once(
    det: Path, seg: Path, tmp_path: Path
) -> None:
    words = ["--trunk", det, "--take", f"segment_head,backbone_2d.segblocks:{seg}"]
    words += ["--take", f"segment_head:{seg}", "--out", tmp_path / "all.pth"]
    assert main(["stitch", *map(str, words)]) == 0


@pytest.mark.parametrize("text", ["segment_head", ":seg.pth", "segment_head:", ", :seg.pth"])
def test_a_take_without_names_or_file_is_an_error(text: str) -> None:
    with pytest.raises(CheckpointError, match=r"such as segment_head,backbone_2d\.segblocks:seg\.pth"):
        read_take(text)
