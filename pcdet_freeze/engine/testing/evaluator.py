"""Evaluate a model, for all tasks that it has, or all checkpoints of a run as they appear."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from pcdet_freeze.datasets.loader import each_batch
from pcdet_freeze.engine.checkpoint.io import epoch_of
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.event_file import EventFile
from pcdet_freeze.engine.testing.joined_scores import score_with_parts
from pcdet_freeze.engine.testing.output_digest import OutputDigests, to_plain
from pcdet_freeze.engine.testing.scoring import FrameResult, TaskCounter
from pcdet_freeze.evaluation import PrecisionRecall
from pcdet_freeze.freezing.checks.output_drift import plain_arithmetic
from pcdet_freeze.freezing.verification.averages import trained_weights
from pcdet_freeze.models import load_data_to_gpu
from pcdet_freeze.utils import distributed
from pcdet_freeze.utils.output_files import write_text, writing
from pcdet_freeze.utils.progress import progress
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

T = TypeVar("T")
DONE_LIST = "eval_list.txt"
NOTHING = "Nothing was evaluated: no checkpoint_epoch_N.pth, N >= %d, in %s that %s does not list already."


def eval_one_epoch(
    cfg: Mapping[str, Any],
    model: nn.Module,
    loader: Any,
    epoch_id: int | str,
    logger: logging.Logger,
    dist_test: bool = False,
    result_dir: str | Path | None = None,
    save_to_file: bool = False,
    infer_time: bool = False,
    points: list[PrecisionRecall] | None = None,
    digest: bool = False,
) -> dict[str, float]:
    """Predict every frame of ``loader`` and score the predictions; returns metric name -> value.

    Boxes are scored by MODEL.POST_PROCESSING.EVAL_METRIC, every other task that the model predicts by its
    metric in ``evaluation.TASK_METRICS``; all metrics are logged in one table.

    On rank 0 writes ``result.pkl`` (the boxes, as OpenPCDet does) and ``result.json`` (the metrics) to
    ``result_dir``, and with ``save_to_file`` one text file a frame below ``final_result/data``. With
    ``dist_test`` each rank predicts its share; all ranks return the same metrics. ``points`` gets the counts
    of the precision curves, on rank 0. With ``digest``, predicts in plain arithmetic and also writes
    ``digest.json``, the digests of all outputs (:class:`OutputDigests`).
    Raises DataError unless there is one prediction for each frame, and a label to score one of them.
    """
    logger.info("*************** EPOCH %s EVALUATION *****************", epoch_id)
    folder = Path(result_dir) if result_dir is not None else None
    text_folder = folder / "final_result" / "data" if folder is not None and save_to_file else None
    if text_folder is not None:
        with writing(text_folder):
            text_folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    counter = TaskCounter(loader.dataset)
    digests = OutputDigests(model) if digest else None
    share = _predict(model, loader, cfg["CLASS_NAMES"], text_folder, counter, logger, digests)
    frames, recall = share.frames, share.recall
    if dist_test:
        frames = interleave(distributed.gather(frames), len(loader.dataset))
        recall = distributed.reduce_sum(recall)
    spent = (time.perf_counter() - begin) / max(len(loader.dataset), 1)
    logger.info("Generate label finished (sec_per_example: %.4f second).", spent)
    if infer_time:
        logger.info("Average inference time: %.2f ms a batch", 1000 * share.seconds / max(len(loader), 1))
    result = distributed.from_main(
        score_with_parts(cfg, loader.dataset, frames, recall, counter, logger, points)
        if distributed.rank() == 0
        else {}
    )
    if folder is not None:
        distributed.main_only(lambda: _write(folder, frames, result, digests))
        logger.info("Result is saved to %s", folder)
    return result


@dataclass
class _Share:
    """Predictions of one rank, in the order of its loader."""

    frames: list[FrameResult] = field(default_factory=list)
    recall: dict[str, float] = field(default_factory=dict)
    """summed counts"""
    seconds: float = 0.0
    """spent in the model"""


def _predict(
    model: nn.Module,
    loader: Any,
    class_names: list[str],
    text_folder: Path | None,
    counter: TaskCounter,
    logger: logging.Logger,
    digests: OutputDigests | None,
) -> _Share:
    model = distributed.unwrap(model)
    device = next(model.parameters()).device
    share = _Share()
    model.eval()
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(0)
    batches = each_batch(loader)
    if distributed.rank() == 0:
        batches = progress(batches, len(loader), "eval", "batch", logger.info)
    for batch in batches:
        load_data_to_gpu(batch, device)
        begin = time.perf_counter()
        with torch.no_grad(), nullcontext() if digests is None else plain_arithmetic():
            predictions, recall = model(batch)
        share.seconds += time.perf_counter() - begin
        if digests is not None:
            digests.add(batch, predictions)
        for key, value in recall.items():
            share.recall[key] = share.recall.get(key, 0) + float(value)
        annos = _annos(loader.dataset, batch, predictions, class_names, text_folder)
        write = getattr(loader.dataset, "write_predictions", None)
        if text_folder is not None and write is not None:
            with writing(text_folder):
                write(batch, predictions, text_folder)
        counts = counter.count(batch, predictions)
        share.frames += [FrameResult(anno, own) for anno, own in zip(annos, counts, strict=True)]
    return share


def _annos(
    dataset: Any, batch: dict[str, Any], predictions: Any, class_names: list[str], text_folder: Path | None
) -> list[dict[str, Any]]:
    """Boxes as annotation dicts; only the frame_id if the model predicts no boxes."""
    if all("pred_boxes" in found for found in predictions):
        with writing(text_folder) if text_folder is not None else nullcontext():
            return dataset.generate_prediction_dicts(batch, predictions, class_names, text_folder)
    return [{"frame_id": frame_id} for frame_id in batch["frame_id"]]


def interleave(parts: Sequence[Sequence[T]], total: int) -> list[T]:
    """Results of all ranks in the order of the frames.

    Rank r of W predicted frames r, r + W, ..., padded from the beginning to equal lengths: frames beyond
    ``total`` are padding and are dropped.
    """
    longest = max(len(part) for part in parts)
    merged = [part[i] for i in range(longest) for part in parts if i < len(part)]
    return merged[:total]


def _write(
    folder: Path, frames: Sequence[FrameResult], result: Mapping[str, float], digests: OutputDigests | None
) -> None:
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "result.pkl").open("wb") as file:
            pickle.dump([frame.anno for frame in frames], file)
    write_text(folder / "result.json", json.dumps(dict(result), indent=1, sort_keys=True) + "\n")
    if digests is not None:
        write_text(folder / "digest.json", json.dumps(to_plain(digests.found), indent=1) + "\n")


def evaluate_all(
    model: nn.Module,
    evaluate: Callable[[nn.Module, int], Mapping[str, Any]],
    ckpt_dir: Path,
    result_dir: Path,
    logger: logging.Logger,
    *,
    start_epoch: int = 0,
    max_waiting_mins: float = 30,
    sleep: Callable[[float], None] = time.sleep,
) -> list[int]:
    """Evaluate each ``checkpoint_epoch_N.pth``, N >= ``start_epoch``, once, oldest first; returns the epochs.

    Epochs in ``eval_list.txt``, which an earlier call wrote, are skipped. Returns when no new checkpoint
    has appeared for ``max_waiting_mins`` minutes.
    """
    with writing(result_dir):
        result_dir.mkdir(parents=True, exist_ok=True)
    done_file, waited = result_dir / DONE_LIST, 0.0
    finished: list[int] = []
    while True:
        path = distributed.from_main(_next_checkpoint(ckpt_dir, _evaluated(done_file), start_epoch))
        if path is None:
            if waited >= 60 * max_waiting_mins:
                if not finished:
                    logger.warning(NOTHING, start_epoch, ckpt_dir, done_file)
                return finished
            logger.info(
                "No new checkpoint in %s; waited %.1f of %.1f minutes",
                ckpt_dir,
                waited / 60,
                max_waiting_mins,
            )
            sleep(step := min(30.0, 60 * max_waiting_mins))
            waited += step
            continue
        load_model_state(model, trained_weights(load_checkpoint(path)), path)
        result, epoch = evaluate(model, epoch_of(path)), epoch_of(path)
        distributed.main_only(partial(_record_epoch, result, epoch, done_file, logger))
        finished.append(epoch)
        waited = 0.0


def _next_checkpoint(folder: Path, done: set[int], start_epoch: int) -> Path | None:
    waiting = [path for path in folder.glob("*.pth") if epoch_of(path) >= max(start_epoch, 0)]
    return min((path for path in waiting if epoch_of(path) not in done), key=epoch_of, default=None)


def _evaluated(file: Path) -> set[int]:
    return {int(line) for line in file.read_text().split()} if file.is_file() else set()


def _record_epoch(result: Mapping[str, Any], epoch: int, done_file: Path, logger: logging.Logger) -> None:
    events = EventFile(done_file.parent / "tensorboard", logger)
    for key, value in result.items():
        events.add_scalar(key, value, epoch)
    events.close()
    with writing(done_file), done_file.open("a") as file:
        file.write(f"{epoch}\n")
