"""BAD_FRAME_LIMIT: a share of each kind, of all ranks, over the whole run."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from engine_toy import toy_trainer
from forked_ranks import in_ranks

from pcdet_freeze.datasets.reading.bad_data import FRAME, OBJECT, BadData, BadFramePolicy, BadItem
from pcdet_freeze.engine.checkpoint.io import checkpoint_state
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.hooks.bad_data import BadDataHook
from pcdet_freeze.engine.hooks.logging import SummaryHook
from pcdet_freeze.errors import CheckpointError, DataError


def item(number: int, kind: str = FRAME) -> BadItem:
    return BadItem(kind, f"{number:06d}", "broken")


def test_the_limit_is_a_share_of_each_kind_and_one_is_always_left_out() -> None:
    bad = BadData(BadFramePolicy(skip=True, limit=0.01), {FRAME: 500, OBJECT: 20})
    bad.add([item(number) for number in range(5)] * 3)
    bad.add([item(0, OBJECT)])
    with pytest.raises(DataError, match=r"BAD_FRAME_LIMIT: at most 1 bad database objects of 20 .*000001"):
        bad.add([item(1, OBJECT)])
    with pytest.raises(DataError, match=r"at most 5 bad frames of 500 .* but 6 were found: 000000.*: broken"):
        bad.add([item(5)])


def trainer_with(items: list[BadItem], *hooks: Any, limit: float = 1.0, **more: Any) -> Any:
    """A trainer whose data set has 8 frames; each batch has the bad ``items``."""
    trainer = toy_trainer([BadDataHook(), *hooks], **more)
    trainer.loader.dataset.totals = lambda: {FRAME: 8}
    trainer.loader.dataset.policy = BadFramePolicy(skip=True, limit=limit)

    def load(batches: Any, load_batches: Any = trainer._load_batches) -> list[dict[str, Any]]:
        return [{**batch, "bad_data": items} for batch in load_batches(batches)]

    trainer._load_batches = load  # type: ignore[method-assign]
    return trainer


def test_bad_data_are_counted_at_the_end_of_each_epoch_and_in_the_summary(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        trainer_with([item(1), item(2, OBJECT)], SummaryHook(tmp_path / "run.json")).run()
    assert caplog.text.count("Left out in this epoch: 1 bad frames: 000001") == 2
    assert "Left out in this run: 1 bad database objects, 1 bad frames" in caplog.text
    summary = json.loads((tmp_path / "run.json").read_text())["bad_data"]
    assert summary == {OBJECT: {"count": 1, "names": ["000002"]}, FRAME: {"count": 1, "names": ["000001"]}}


@pytest.mark.parametrize("iterations", [3, 4])
def test_a_resume_counts_the_bad_frames_before_it(iterations: int) -> None:
    """In the middle of an epoch and at its end: two frames of eight may be bad, and one is known."""
    first = trainer_with([item(0)], max_iters=iterations)
    first.run()
    state = checkpoint_state(first)
    second = trainer_with([item(1)], limit=0.25)
    resume(second, state)
    second.run()
    assert second.results["bad_data"][FRAME]["names"] == ["000000", "000001"]
    third = trainer_with([item(1), item(2)], limit=0.25)
    resume(third, state)
    with pytest.raises(DataError, match=r"at most 2 bad frames of 8 .* but 3 were found: 000000, 000001"):
        third.run()


@pytest.mark.parametrize("damaged", [5, [["frame", "1"]], [["frame", "1", 2]], {"frame": {}}])
def test_damaged_bad_frames_in_a_checkpoint_are_an_error_of_the_checkpoint(damaged: Any) -> None:
    trainer = trainer_with([])
    trainer.resumed = {"bad_data": damaged}
    with pytest.raises(CheckpointError, match="bad frames in a checkpoint must be lists"):
        trainer.run()


def epoch_of_rank(rank: int, items: dict[int, list[BadItem]]) -> dict[str, Any]:
    """An epoch in which this rank met ``items[rank]``; two frames of eight may be bad."""
    policy = BadFramePolicy(skip=True, limit=0.25)
    dataset = SimpleNamespace(totals=lambda: {FRAME: 8}, policy=policy)
    log = logging.getLogger("pcdet_freeze.test")
    trainer: Any = SimpleNamespace(
        loader=SimpleNamespace(dataset=dataset), batch={"bad_data": items[rank]}, logger=log, resumed={}
    )
    hook, ours = BadDataHook(), dict[str, Any]()
    hook.before_train(trainer)
    hook.after_step(trainer)
    hook.at_checkpoint(trainer, ours)
    hook.after_epoch(trainer)
    return ours


def test_the_bad_frames_of_all_ranks_count_together_and_stand_in_the_checkpoint(tmp_path: Path) -> None:
    found = in_ranks(tmp_path, lambda rank: epoch_of_rank(rank, {0: [item(0)], 1: [item(0), item(1)]}))
    names = [{name for _, name, _ in ours["bad_data"]} for ours in found]
    assert names == [{"000000", "000001"}] * 2


def test_all_ranks_end_where_their_bad_frames_together_are_more_than_the_limit(tmp_path: Path) -> None:
    found = in_ranks(tmp_path, lambda rank: epoch_of_rank(rank, {0: [item(0)], 1: [item(1), item(2)]}))
    assert len(set(map(str, found))) == 1 and "DataError: DATA_CONFIG.BAD_FRAME_LIMIT" in found[0]
