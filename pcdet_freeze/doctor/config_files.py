"""Checks of a config: its keys, its data, and where its run would be written."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from pcdet_freeze.doctor.checks import Case, NotApplicable, check
from pcdet_freeze.doctor.packages import torch_works
from pcdet_freeze.errors import PCDetFreezeError

T = TypeVar("T")
SAMPLES = 5
"""frames that are read, evenly spaced"""
SCALES = {"KittiDataset": 1.0}
"""data set -> intensity that its sensor knows as the most"""
QUIET = logging.getLogger("pcdet_freeze.doctor")


@check("config", "the config is valid", "error", "correct the keys at the files and lines that are named")
def config(case: Case) -> Iterator[str]:
    from pcdet_freeze.engine.check_config import check_config

    try:
        check_config(_cfg(case))
    except PCDetFreezeError as error:
        yield str(error)


@check(
    "data-path",
    "DATA_PATH exists",
    "error",
    "--set DATA_CONFIG.DATA_PATH FOLDER, or a link: ln -s FOLDER data/kitti",
)
def data_path(case: Case) -> Iterator[str]:
    folder = _data_folder(case)
    if not folder.is_dir():
        yield f"DATA_CONFIG.DATA_PATH is {folder}, which is no folder (from {Path.cwd()})"


@check(
    "info-files",
    "info files and the object database exist",
    "error",
    "pcdet-freeze prepare <data set> --cfg_file dataset_configs/<data set>.yaml",
)
def info_files(case: Case) -> Iterator[str]:
    folder, data = _data_folder(case), _cfg(case).DATA_CONFIG
    _need_data_folder(case)
    names = [name for found in (data.get("INFO_PATH") or {}).values() for name in _list(found)]
    augment = (data.get("DATA_AUGMENTOR") or {}).get("AUG_CONFIG_LIST") or []
    off = (data.get("DATA_AUGMENTOR") or {}).get("DISABLE_AUG_LIST") or []
    for part in augment:
        if part.get("NAME") not in off:
            names += _list(part.get("DB_INFO_PATH"))
    if not names:
        raise NotApplicable("the data set has no INFO_PATH and no DB_INFO_PATH")
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        yield f"missing in {folder}: {', '.join(missing)}"


@check(
    "frames",
    "frames can be read",
    "error",
    "look at the file that is named; `prepare` writes info files again",
)
def frames(case: Case) -> Iterator[str]:
    _need_data_folder(case)
    for mode in ("train", "test"):
        try:
            data = _dataset(case, mode)
            if not len(data):
                yield f"no frame for {mode}: a training would end at once (OpenPCDet: `epochs: 0it`)"
            for index in _chosen(len(data)):
                data.load_sample(index)
        except PCDetFreezeError as error:
            yield f"{mode}: {error}"


@check(
    "intensity",
    "the intensity has one scale, that of the data set",
    "warning",
    "divide the intensity by 255 where the files are written: weights of another scale give an AP near 0",
)
def intensity(case: Case) -> Iterator[str]:
    data = _readable(case, "train")
    columns = list(data.point_feature_encoder.src_feature_list)
    if "intensity" not in columns:
        raise NotApplicable("the points have no intensity")
    samples = _read(data)
    column = columns.index("intensity")
    most = [float(s["points"][:, column].max()) for s in samples if len(s["points"])]
    limit = SCALES.get(type(data).__name__)
    if most and limit is not None and max(most) > limit:
        yield f"the intensity reaches {max(most):g}; {type(data).__name__} has 0 to {limit:g}"
    elif most and min(most) <= 1 and max(most) > 2:
        yield f"the intensity reaches {max(most):g} in some frames and {min(most):g} in others"


@check(
    "classes",
    "every class of CLASS_NAMES occurs in the labels",
    "warning",
    "spell CLASS_NAMES as the labels do, and prepare the data again: a class without labels has AP 0",
)
def classes(case: Case) -> Iterator[str]:
    data, names = _readable(case, "test"), [str(name) for name in _cfg(case).CLASS_NAMES]
    annos = [anno for anno in data.ground_truth_annos() if anno is not None]
    if not annos:
        raise NotApplicable("no frame of the test data has boxes")
    found = {str(name) for anno in annos for name in anno["name"]}
    lacking = [name for name in names if name not in found]
    if lacking:
        known = ", ".join(sorted(found)) or "none"
        yield f"no label in {len(annos)} test frames is called {', '.join(lacking)}; labels there: {known}"


@check(
    "range",
    "boxes and points lie in POINT_CLOUD_RANGE",
    "warning",
    "boxes must be in the LiDAR frame (x forward, y left, z up; centres, not bottoms); move "
    "POINT_CLOUD_RANGE to the height of your sensor",
)
def in_range(case: Case) -> Iterator[str]:
    import numpy as np

    data = _readable(case, "train")
    limits = np.asarray(data.point_cloud_range, float)
    samples = _read(data)
    clouds = [np.asarray(sample["points"])[:, :3] for sample in samples]
    boxes = [np.asarray(s["gt_boxes"])[:, :3] for s in samples if len(s.get("gt_boxes", ()))]
    for what, rows in (("points", clouds), ("box centres", boxes)):
        places = np.concatenate(rows) if rows else np.zeros((0, 3))
        inside = ((places >= limits[:3]) & (places <= limits[3:])).all(axis=1)
        if len(places) and inside.mean() < 0.02:
            low, high = places.min(axis=0).round(1).tolist(), places.max(axis=0).round(1).tolist()
            yield (
                f"{inside.mean():.1%} of the {what} of {len(samples)} frames lie in {limits.tolist()}; they "
                f"reach from {low} to {high}: AP 0"
            )


@check(
    "finished-run",
    "the run's folder has epochs left to train",
    "warning",
    "choose another --extra_tag, raise --epochs, or delete the folder; OpenPCDet shows `epochs: 0it`",
)
def finished_run(case: Case) -> Iterator[str]:
    from pcdet_freeze.engine.checkpoint.io import epoch_of
    from pcdet_freeze.engine.run_context import RunOptions, folders_of

    cfg = _cfg(case)
    folder = folders_of(cfg, RunOptions(extra_tag=case.extra_tag, output_dir=case.output)).ckpt
    last = max((epoch_of(path) for path in folder.glob("checkpoint_epoch_*.pth")), default=0)
    epochs = int((cfg.get("OPTIMIZATION") or {}).get("NUM_EPOCHS") or 0)
    if epochs and last >= epochs:
        yield f"{folder} has checkpoint_epoch_{last}.pth, and NUM_EPOCHS is {epochs}: nothing is left to do"


@check(
    "checkpoint",
    "the checkpoint can be read",
    "error",
    "--trust_checkpoint reads a file of your own that holds more than plain data (weights_only); otherwise "
    "download it again",
)
def checkpoint(case: Case) -> Iterator[str]:
    if case.checkpoint is None:
        raise NotApplicable("no --ckpt")
    _need_torch(case)
    from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

    try:
        state = load_checkpoint(case.checkpoint)
    except PCDetFreezeError as error:
        yield str(error)
        return
    if not state.get("model_state"):
        yield f"{case.checkpoint} has no model_state"


def _need_torch(case: Case) -> None:
    if not torch_works(case):
        raise NotApplicable("torch cannot be imported (check torch)")


def _cfg(case: Case) -> Any:
    if case.cfg_file is None:
        raise NotApplicable("no --cfg_file")
    _need_torch(case)
    from pcdet_freeze.config import load_cfg

    return _once(case, "cfg", lambda: load_cfg(str(case.cfg_file), case.overrides))


def _data_folder(case: Case) -> Path:
    asked = (_cfg(case).get("DATA_CONFIG") or {}).get("DATA_PATH")
    if asked is None:
        raise NotApplicable("the data set has no DATA_PATH")
    return Path(str(asked))


def _need_data_folder(case: Case) -> None:
    data = _cfg(case).get("DATA_CONFIG") or {}
    if data.get("DATA_PATH") is not None and not _data_folder(case).is_dir():
        raise NotApplicable("DATA_PATH does not exist (check data-path)")


def _dataset(case: Case, mode: str) -> Any:
    """The data set of the config. Raises DataError where it cannot be built."""
    from pcdet_freeze.datasets import build_dataset

    cfg = _cfg(case)
    QUIET.setLevel(logging.ERROR)
    return _once(
        case,
        mode,
        lambda: build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=mode == "train", logger=QUIET),
    )


def _readable(case: Case, mode: str) -> Any:
    """The data set, where check ``frames`` has nothing against it."""
    try:
        data = _dataset(case, mode)
        next(iter(_read(data)))
    except StopIteration:
        raise NotApplicable(f"there is no frame for {mode} (check frames)") from None
    except PCDetFreezeError as error:
        raise NotApplicable("no frame can be read (checks data-path and frames)") from error
    return data


def _read(data: Any) -> list[dict[str, Any]]:
    return [data.load_sample(index) for index in _chosen(len(data))]


def _chosen(count: int) -> list[int]:
    chosen = min(SAMPLES, count)
    return sorted({place * (count - 1) // max(chosen - 1, 1) for place in range(chosen)})


def _list(value: Any) -> list[str]:
    return (
        []
        if value is None
        else [str(one) for one in value]
        if isinstance(value, list | tuple)
        else [str(value)]
    )


def _once(case: Case, key: str, make: Callable[[], T]) -> T:
    if key not in case.kept:
        case.kept[key] = make()
    found: T = case.kept[key]
    return found
