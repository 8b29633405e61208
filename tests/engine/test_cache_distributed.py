"""F7 under torchrun: two gloo processes fill one folder, and two others read it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_distributed_pointpillar import FLAGS, SMALL
from two_processes import torchrun

ENTRIES = 6 * 2


def start(root: Path, out: Path, cache: Path, variants: int = 2) -> str:
    """Two epochs; each rank's weights are in OUT/<rank>.pt. Returns what the run logged."""
    out.mkdir()
    cfg = root / "cfgs" / "synthetic_models" / "pointpillar.yaml"
    worker = Path(__file__).with_name("pointpillar_worker.py")
    sets = [*SMALL, "MODEL.FREEZE.CACHE", f"{{FOLDER: {cache}, VARIANTS: {variants}}}"]
    flags = [*FLAGS, "--fix_random_seed", "--num_epochs_to_eval", "0"]
    done = torchrun(
        str(worker),
        str(root),
        str(out),
        *flags,
        "--cfg_file",
        str(cfg),
        "--output_dir",
        str(out),
        "--set",
        *sets,
    )
    assert done.returncode == 0 or "FreezeError" in done.stderr, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[str], Path]:
    """A run that filled the folder, and one that found it full; their logs; the folder."""
    base = tmp_path_factory.mktemp("ddp_cache")
    outs = [base / "filling", base / "reading"]
    return outs, [start(root, out, base / "cache") for out in outs], base / "cache"


def test_f7_both_runs_and_all_ranks_end_with_the_same_weights(
    runs: tuple[list[Path], list[str], Path],
) -> None:
    states = [torch.load(out / f"{rank}.pt") for out in runs[0] for rank in (0, 1)]
    for other in states[1:]:
        assert all(torch.equal(value, other[name]) for name, value in states[0].items())


def test_f7_the_ranks_share_one_folder_and_leave_no_sample_out(
    runs: tuple[list[Path], list[str], Path],
) -> None:
    (folder,) = runs[2].iterdir()
    marks = torch.from_file(str(folder / "marks.bin"), size=2 * ENTRIES, dtype=torch.int64).view(-1, 2)
    assert (marks[:, 0] > 0).all()
    assert [log.count("Cache of backbone_2d.blocks.0") for log in runs[1]] == [1, 1]
    assert f"0 of {ENTRIES} samples are there already" in runs[1][0]
    assert f"{ENTRIES} of {ENTRIES} samples are there already" in runs[1][1]


def test_f7_a_refusal_is_heard_by_all_ranks(runs: tuple[list[Path], list[str], Path], root: Path) -> None:
    said = start(root, runs[2].parent / "refused", runs[2].parent / "huge", 10**10)
    assert said.count("The cache must fit on the disk") >= 1 and "Timeout" not in said
