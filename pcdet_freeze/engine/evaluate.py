"""From a model and a loader to predictions, files and metrics."""

from __future__ import annotations

import json
import logging
import pickle
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from pcdet_freeze.engine import distributed
from pcdet_freeze.errors import DataError
from pcdet_freeze.evaluation import EVALUATORS
from pcdet_freeze.models import load_data_to_gpu

Annos = list[dict[str, Any]]


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

    On rank 0 writes ``result.pkl`` (the predictions, as OpenPCDet does) and ``result.json`` (the metrics) to
    ``result_dir``, and with ``save_to_file`` one text file a frame below ``final_result/data``. With
    ``dist_test`` each rank predicts its share; all ranks return the same metrics.
    Raises DataError where the predictions are not one for each frame.
    """
    logger.info("*************** EPOCH %s EVALUATION *****************", epoch_id)
    folder = Path(result_dir) if result_dir is not None else None
    text_folder = folder / "final_result" / "data" if folder is not None and save_to_file else None
    if text_folder is not None:
        text_folder.mkdir(parents=True, exist_ok=True)
    begin = time.perf_counter()
    annos, recall, seconds = _predict(model, loader, cfg["CLASS_NAMES"], text_folder)
    if dist_test:
        annos = interleave(distributed.gather(annos), len(loader.dataset))
        recall = distributed.reduce_sum(recall)
    spent = (time.perf_counter() - begin) / max(len(loader.dataset), 1)
    logger.info("Generate label finished (sec_per_example: %.4f second).", spent)
    if infer_time:
        logger.info("Average inference time: %.2f ms a batch", 1000 * seconds / max(len(loader), 1))
    result = distributed.from_main(
        _score(cfg, loader.dataset, annos, recall, logger) if distributed.rank() == 0 else {}
    )
    if folder is not None and distributed.rank() == 0:
        _write(folder, annos, result)
        logger.info("Result is saved to %s", folder)
    distributed.barrier()
    return result


def _predict(
    model: nn.Module, loader: Any, class_names: list[str], text_folder: Path | None
) -> tuple[Annos, dict[str, float], float]:
    """(annotations of this rank's frames in loader order, summed recall counts, seconds in the model)."""
    model = distributed.unwrap(model)
    device = next(model.parameters()).device
    annos: Annos = []
    recall: dict[str, float] = {}
    seconds = 0.0
    model.eval()
    if hasattr(loader.sampler, "set_epoch"):
        loader.sampler.set_epoch(0)
    hidden = distributed.rank() > 0 or not sys.stderr.isatty()
    for batch in tqdm(loader, desc="eval", dynamic_ncols=True, leave=False, disable=hidden):
        load_data_to_gpu(batch, device)
        begin = time.perf_counter()
        with torch.no_grad():
            predictions, counts = model(batch)
        seconds += time.perf_counter() - begin
        for key, value in counts.items():
            recall[key] = recall.get(key, 0) + float(value)
        annos += loader.dataset.generate_prediction_dicts(batch, predictions, class_names, text_folder)
    return annos, recall, seconds


def interleave(parts: list[Annos], total: int) -> Annos:
    """Annotations of all ranks in the order of the frames.

    Rank r of W predicted frames r, r + W, ..., filled up from the beginning so that all ranks are equally
    long: the fill is cut off at ``total``.
    """
    longest = max(len(part) for part in parts)
    merged = [part[i] for i in range(longest) for part in parts if i < len(part)]
    return merged[:total]


def _score(
    cfg: Mapping[str, Any], dataset: Any, annos: Annos, recall: Mapping[str, float], logger: logging.Logger
) -> dict[str, float]:
    truth = dataset.ground_truth_annos()
    if len(annos) != len(truth):
        raise DataError(
            f"Every frame must be predicted once, but there are {len(annos)} predictions for "
            f"{len(truth)} frames of {type(dataset).__name__}."
        )
    result: dict[str, float] = {}
    total = max(recall.get("gt", recall.get("gt_num", 0)), 1)
    for key, value in recall.items():
        if key.startswith(("roi_", "rcnn_")):
            result[f"recall/{key}"] = value / total
            logger.info("recall_%s: %f", key, value / total)
    objects = sum(len(anno["name"]) for anno in annos) / max(len(annos), 1)
    logger.info("Average predicted number of objects (%d samples): %.3f", len(annos), objects)
    metric = EVALUATORS.get(cfg["MODEL"]["POST_PROCESSING"]["EVAL_METRIC"])
    text, values = metric(truth, annos, list(cfg["CLASS_NAMES"]))
    logger.info("%s", text)
    return result | {key: float(value) for key, value in values.items()}


def _write(folder: Path, annos: Annos, result: Mapping[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "result.pkl").open("wb") as file:
        pickle.dump(annos, file)
    (folder / "result.json").write_text(json.dumps(dict(result), indent=1, sort_keys=True) + "\n")
