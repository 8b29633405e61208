"""Write ``once_infos_<split>.pkl``, ``once_dbinfos_train.pkl`` and ``gt_database/``, in OpenPCDet's format.

Each sequence's part is written as soon as it is done: an interrupted run continues from there.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.augmentor.database import DATABASE
from pcdet_freeze.datasets.file_formats.files import read_bin, write_pickle
from pcdet_freeze.datasets.file_formats.info_files import read_frame_ids
from pcdet_freeze.datasets.once.dataset import FEATURES, SPLITS, Info, OnceDataset, boxes_of, points_path
from pcdet_freeze.datasets.packed import INFOS, packed_file
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    PrepareReport,
    key_of,
    make_parts,
    parts_folder,
    write_database,
    write_objects,
)
from pcdet_freeze.datasets.reading.timed_reads import limit_of, reads_within, timed
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.errors import DataError
from pcdet_freeze.ops.boxes import points_in_boxes_mask
from pcdet_freeze.utils.untrusted_files.inside import inside

OBJECTS, PARTS = "gt_database", ".once_parts"
CAMERAS = ("cam01", "cam03", "cam05", "cam06", "cam07", "cam08", "cam09")
CALIBRATION = ("cam_to_velo", "cam_intrinsic", "distortion")
_BROKEN = (KeyError, IndexError, TypeError, ValueError, OverflowError, AttributeError)


def prepare_once(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the sequences of ONCE at DATA_PATH; write their infos and the objects of the training split.

    ``out_dir`` defaults to INFO_ROOT, then to the data folder. Splits without a list in ImageSets are left
    out. A sequence that cannot be read is left out, named with its reason, and counted. Finished sequences
    of an interrupted run are not read again, unless their JSON file or the config changed. Each file is
    written whole or not at all. Large lists are packed too (``datasets.packed``).

    Raises:
        DataError: no train.txt and val.txt, no good sequence, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log = logger or logging.getLogger("pcdet_freeze")
    report = PrepareReport("sequence")
    with reads_within(limit_of(dataset_cfg)):
        settings = OnceDataset.read_settings(dataset_cfg)
        root = Path(settings.data_path or ".")
        out = Path(out_dir or settings.info_root or root)
        with parts_folder(out, PARTS) as folder:
            training: list[Info] = []
            for split, names in read_splits(root).items():
                frames = _frames(dataset_cfg, root, split, names, out if split == "train" else None)
                parts = make_parts(frames, folder, workers, report) if names else []
                _write(out / f"once_infos_{split}.pkl", parts, report, split, log)
                training += parts if split == "train" else []
            database = out / "once_dbinfos_train.pkl"
            write_database(database, training, report)
            packed_file(DATABASE, [database], log)
    report.log(log, class_names, out)
    return report


def _frames(cfg: Config, root: Path, split: str, names: list[str], out: Path | None) -> Frames:
    """The parts of a split, one per sequence; its objects go below ``out``."""
    return Frames(
        split,
        names,
        lambda index: key_of([_json_path(root, names[index])], dict(cfg)),
        lambda index: _part(root, names[index], out),
    )


def _write(path: Path, parts: list[Info], report: PrepareReport, split: str, log: logging.Logger) -> None:
    infos = [info for part in parts for info in part["infos"]]
    write_pickle(path, infos)
    report.frames[split] = len(infos)
    packed_file(INFOS, [path], log)


def read_splits(root: Path) -> dict[str, list[str]]:
    """Names of the sequences of each split that has a file in ImageSets; train and val must have one."""
    splits = {}
    for split in SPLITS:
        path = root / "ImageSets" / f"{split}.txt"
        if timed(path, path.is_file):
            splits[split] = read_frame_ids(path)
    if missing := [f"{split}.txt" for split in ("train", "val") if split not in splits]:
        verb = "is" if len(missing) == 1 else "are"
        raise DataError(
            f"{(root / 'ImageSets').absolute()} must hold train.txt and val.txt (one sequence per line); "
            f"{' and '.join(missing)} {verb} not there. Set DATA_PATH to the folder of ONCE"
        )
    return splits


def _json_path(root: Path, name: str) -> Path:
    return inside(root / "data", f"{name}/{name}.json", "a sequence of ImageSets")


def _part(root: Path, name: str, out: Path | None) -> Info:
    """Infos of a sequence, and the entries of its objects where they go into the database ``out``."""
    path = _json_path(root, name)
    try:
        given = json.loads(timed(path, path.read_bytes))
        meta, frames = given["meta_info"], given["frames"]
        calib = {
            camera: {key: np.array(given["calib"][camera][key], np.float64) for key in CALIBRATION}
            for camera in CAMERAS
            if camera in given["calib"]
        }
        ids = [str(frame["frame_id"]) for frame in frames]
    except (OSError, RecursionError, *_BROKEN) as error:
        raise DataError(
            f"{path}: a sequence is a JSON file with meta_info, calib and frames, but cannot be read "
            f"({error!r})"
        ) from error
    infos, objects = [], []
    for number, frame in enumerate(frames):
        info: Info = {
            "sequence_id": name,
            "frame_id": ids[number],
            "timestamp": int(ids[number]) if ids[number].isdecimal() else ids[number],
            "prev_id": ids[number - 1] if number else None,
            "next_id": ids[number + 1] if number + 1 < len(ids) else None,
            "meta_info": meta,
            "calib": calib,
            "lidar": str(path.parent / "lidar_roof" / f"{ids[number]}.bin"),
            **{camera: str(path.parent / camera / f"{ids[number]}.jpg") for camera in calib},
        }
        if (annos := _annos(path, frame, info, number)) is not None:
            if not len(annos["boxes_3d"]):  # OpenPCDet's lists do not have them either
                continue
            info["annos"] = annos
            objects += _add_points(root, info, number, out)
        infos.append(info)
    return {"infos": infos, "objects": objects}


def _annos(path: Path, frame: Any, info: Info, number: int) -> Info | None:
    """``annos`` of an info, and its pose; None for a frame without labels."""
    try:
        info["pose"] = np.array(frame["pose"], np.float64)
        if "annos" not in frame:
            return None
        given = frame["annos"]
        annos: Info = {
            "name": np.array([str(name) for name in given["names"]]),
            "boxes_3d": np.array(given["boxes_3d"], np.float64).reshape(-1, 7),
            "boxes_2d": {
                camera: np.array(boxes, np.float64) for camera, boxes in given.get("boxes_2d", {}).items()
            },
        }
        boxes_of({**info, "annos": annos}, number)
    except _BROKEN as error:
        raise DataError(
            f"{path}: frame {number} must hold pose and annos as ONCE writes them ({error!r})"
        ) from error
    return annos


def _add_points(root: Path, info: Info, number: int, out: Path | None) -> list[Info]:
    """Count the points in the boxes of a frame; write its objects and return their entries if ``out``."""
    boxes, names, _ = boxes_of(info, number)
    points = read_bin(points_path(root, info), FEATURES)
    inside_each = points_in_boxes_mask(points, boxes.astype(np.float32), margin=0.0)
    info["annos"]["num_points_in_gt"] = inside_each.sum(axis=1).astype(np.int32)
    if out is None:
        return []
    return write_objects(
        out, OBJECTS, f"{info['sequence_id']}_{info['frame_id']}", points, boxes, names.tolist()
    )
