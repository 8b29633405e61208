"""The scores of the nuscenes-devkit (the extra ``nuscenes``): NDS, mAP and the errors of true positives."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pcdet_freeze.datasets.nuscenes.classes import DETECTION_CLASSES
from pcdet_freeze.datasets.nuscenes.results import result_file
from pcdet_freeze.errors import ConfigError, DataError

CONFIG = "detection_cvpr_2019"
ERRORS = {
    "trans_err": "mATE",
    "scale_err": "mASE",
    "orient_err": "mAOE",
    "vel_err": "mAVE",
    "attr_err": "mAAE",
}
"""the devkit's names, and those of its tables"""
EXTRA = "pip install 'pcdet-freeze[nuscenes]'"
Rows = Mapping[str, list[dict[str, Any]]]


def check(class_names: Sequence[str]) -> None:
    """Raise ConfigError if the devkit is missing, or scores one of ``class_names`` not."""
    cure = "or set DATA_CONFIG.OFFICIAL_EVALUATION: false and use MODEL.POST_PROCESSING.EVAL_METRIC"
    if find_spec("nuscenes") is None or find_spec("nuscenes.eval") is None:
        raise ConfigError(
            f"Boxes of nuScenes are scored by the nuscenes-devkit, which is not installed: {EXTRA}; {cure}"
        )
    if unknown := [name for name in class_names if name not in DETECTION_CLASSES]:
        raise ConfigError(
            f"The nuscenes-devkit scores the classes {', '.join(DETECTION_CLASSES)}; CLASS_NAMES has "
            f"{', '.join(unknown)}. Leave them out, {cure}"
        )


def scores(root: Path, version: str, rows: Rows) -> tuple[str, dict[str, float]]:
    """(table, ``{"nuscenes/NDS": ...}``) of the predicted boxes of samples, by token; values as the devkit's.

    Unlike the devkit's own command, any set of samples can be scored, not only a whole split.
    """
    check(())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "results_nusc.json"
        path.write_bytes(result_file(rows))
        summary = _summary(root, version, path, list(rows))
    values = {"NDS": summary["nd_score"], "mAP": summary["mean_ap"]}
    values |= {short: summary["tp_errors"][name] for name, short in ERRORS.items()}
    values |= {f"AP/{name}": ap for name, ap in summary["mean_dist_aps"].items()}
    return _text(summary), {f"nuscenes/{key}": float(value) for key, value in values.items()}


def _summary(root: Path, version: str, path: Path, tokens: list[str]) -> dict[str, Any]:
    from nuscenes.eval.common import loaders
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.nuscenes import NuScenes

    nusc, config = NuScenes(version, dataroot=str(root), verbose=False), config_factory(CONFIG)

    def counted(boxes: Any) -> Any:
        boxes = loaders.add_center_dist(nusc, boxes)
        if not boxes.all:  # the devkit asks the first box for its type
            return boxes
        return loaders.filter_eval_boxes(nusc, boxes, config.class_range)

    most = config.max_boxes_per_sample
    found, _ = loaders.load_prediction_of_sample_tokens(str(path), most, DetectionBox, tokens)
    truth = counted(loaders.load_gt_of_sample_tokens(nusc, tokens, DetectionBox))
    if not truth.all:
        raise DataError(
            f"None of the {len(tokens)} samples has a box that the nuscenes-devkit counts: of a detection "
            "class, in range, with a point. Evaluate on another split"
        )
    # its constructor reads a whole split; its evaluation reads these attributes
    evaluation = SimpleNamespace(cfg=config, verbose=False, gt_boxes=truth, pred_boxes=counted(found))
    metrics, _ = DetectionEval.evaluate(evaluation)
    summary: dict[str, Any] = metrics.serialize()
    return summary


def _text(summary: Mapping[str, Any]) -> str:
    """The devkit's figures, and the AP of each class at each distance."""
    means = [f"NDS {summary['nd_score']:.4f}", f"mAP {summary['mean_ap']:.4f}"]
    means += [f"{short} {summary['tp_errors'][name]:.4f}" for name, short in ERRORS.items()]
    lines = [", ".join(means), f"{'AP within':<22}" + "".join(f"{d:>8g} m" for d in _distances(summary))]
    for name, found in summary["label_aps"].items():
        lines.append(f"{name:<22}" + "".join(f"{found[d]:>10.4f}" for d in _distances(summary)))
    return "\n".join(lines)


def _distances(summary: Mapping[str, Any]) -> list[float]:
    return list(summary["cfg"]["dist_ths"])
