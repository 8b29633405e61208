"""One pass over a loader, for all tasks that the model has: predictions, files, figures."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from tqdm import tqdm

from pcdet_freeze.datasets.loader import each_batch
from pcdet_freeze.engine.testing.scoring import FrameResult, TaskCounter, score
from pcdet_freeze.models import load_data_to_gpu
from pcdet_freeze.utils import distributed

T = TypeVar("T")


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
) -> dict[str, float]:
    """Predict every frame of ``loader`` and score the predictions; returns metric name -> value.

    Boxes are scored by MODEL.POST_PROCESSING.EVAL_METRIC, every other task that the model predicts by its
    metric in ``evaluation.TASK_METRICS``; all figures go into one table in the log.

    On rank 0 writes ``result.pkl`` (the boxes, as OpenPCDet does) and ``result.json`` (the metrics) to
    ``result_dir``, and with ``save_to_file`` one text file a frame below ``final_result/data``. With
    ``dist_test`` each rank predicts its share; all ranks return the same metrics.
    Raises DataError where the predictions are not one for each frame, or nothing can be scored.
    """
    logger.info("*************** EPOCH %s EVALUATION *****************", epoch_id)
    folder = Path(result_dir) if result_dir is not None else None
    text_folder = folder / "final_result" / "data" if folder is not None and save_to_file else None
    if text_folder is not None:
        text_folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    counter = TaskCounter(loader.dataset)
    share = _predict(model, loader, cfg["CLASS_NAMES"], text_folder, counter)
    frames, recall = share.frames, share.recall
    if dist_test:
        frames = interleave(distributed.gather(frames), len(loader.dataset))
        recall = distributed.reduce_sum(recall)
    spent = (time.perf_counter() - begin) / max(len(loader.dataset), 1)
    logger.info("Generate label finished (sec_per_example: %.4f second).", spent)
    if infer_time:
        logger.info("Average inference time: %.2f ms a batch", 1000 * share.seconds / max(len(loader), 1))
    result = distributed.from_main(
        score(cfg, loader.dataset, frames, recall, counter, logger) if distributed.rank() == 0 else {}
    )
    if folder is not None and distributed.rank() == 0:
        _write(folder, frames, result)
        logger.info("Result is saved to %s", folder)
    distributed.barrier()
    return result


@dataclass
class _Share:
    """What one rank predicted, in the order of its loader."""

    frames: list[FrameResult] = field(default_factory=list)
    recall: dict[str, float] = field(default_factory=dict)
    """summed counts"""
    seconds: float = 0.0
    """spent in the model"""


def _predict(
    model: nn.Module, loader: Any, class_names: list[str], text_folder: Path | None, counter: TaskCounter
) -> _Share:
    model = distributed.unwrap(model)
    device = next(model.parameters()).device
    share = _Share()
    model.eval()
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(0)
    hidden = distributed.rank() > 0 or not sys.stderr.isatty()
    for batch in tqdm(
        each_batch(loader), total=len(loader), desc="eval", dynamic_ncols=True, leave=False, disable=hidden
    ):
        load_data_to_gpu(batch, device)
        begin = time.perf_counter()
        with torch.no_grad():
            predictions, recall = model(batch)
        share.seconds += time.perf_counter() - begin
        for key, value in recall.items():
            share.recall[key] = share.recall.get(key, 0) + float(value)
        annos = _annos(loader.dataset, batch, predictions, class_names, text_folder)
        counts = counter.count(batch, predictions)
        share.frames += [FrameResult(anno, own) for anno, own in zip(annos, counts, strict=True)]
    return share


def _annos(
    dataset: Any, batch: dict[str, Any], predictions: Any, class_names: list[str], text_folder: Path | None
) -> list[dict[str, Any]]:
    """Boxes as annotation dicts; the frame_id alone where the model predicts none."""
    if all("pred_boxes" in found for found in predictions):
        return dataset.generate_prediction_dicts(batch, predictions, class_names, text_folder)
    return [{"frame_id": frame_id} for frame_id in batch["frame_id"]]


def interleave(parts: Sequence[Sequence[T]], total: int) -> list[T]:
    """Results of all ranks in the order of the frames.

    Rank r of W predicted frames r, r + W, ..., filled up from the beginning so that all ranks are equally
    long: the fill is cut off at ``total``.
    """
    longest = max(len(part) for part in parts)
    merged = [part[i] for i in range(longest) for part in parts if i < len(part)]
    return merged[:total]


def _write(folder: Path, frames: Sequence[FrameResult], result: Mapping[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "result.pkl").open("wb") as file:
        pickle.dump([frame.anno for frame in frames], file)
    (folder / "result.json").write_text(json.dumps(dict(result), indent=1, sort_keys=True) + "\n")
