"""Write ``kitti_infos_{train,val,trainval,test}.pkl``, ``kitti_dbinfos_train.pkl`` and ``gt_database/``."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from pcdet_freeze.datasets.augmentor.database import DATABASE
from pcdet_freeze.datasets.file_formats.files import PREPARE_HINT, write_pickle
from pcdet_freeze.datasets.file_formats.info_files import folders_beside, read_frame_ids
from pcdet_freeze.datasets.kitti.check_info import KITTI_INFOS, has_scores
from pcdet_freeze.datasets.kitti.frame_files import FrameFiles
from pcdet_freeze.datasets.kitti.infos import Info, frame_info, write_objects
from pcdet_freeze.datasets.packed import packed_file
from pcdet_freeze.datasets.prepare_parts import writing_infos
from pcdet_freeze.datasets.reading.timed_reads import (
    current_limit,
    limit_of,
    reading_pool,
    reads_within,
    timed,
)
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.utils.progress import progress

SPLITS = ("train", "val", "trainval", "test")


@dataclass
class PrepareReport:
    """What was written: frames a split, database objects a class, and each bad frame with its reason."""

    frames: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    scored: list[str] = field(default_factory=list)
    """frames whose labels have scores"""
    without_image: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        frames = ", ".join(f"{number} {split}" for split, number in self.frames.items())
        objects = ", ".join(f"{number} {name}" for name, number in self.objects.items()) or "none"
        return f"frames: {frames}; objects in the database: {objects}; skipped frames: {len(self.skipped)}"


@dataclass(frozen=True)
class _Frame:
    info: Info
    objects: list[Info]


def prepare_kitti(
    dataset_cfg: Config,
    class_names: Sequence[str],
    data_path: str | Path | None = None,
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read KITTI at ``data_path`` (default: DATA_PATH) and write its info files to ``out_dir``.

    ``out_dir`` defaults to INFO_ROOT, then to the data folder. The database holds objects of all classes;
    ``class_names`` are those that a note is logged for when the database has none of them. A bad frame
    (broken points, calibration, image or label) is left out, named with its reason, and counted. Info files
    are written after all frames have been read, each whole or not at all.

    Raises:
        DataError: no data folder, no split files, no good frame, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log = logger or logging.getLogger("pcdet_freeze")
    for key in ("DATA_PATH", "INFO_ROOT"):
        if not isinstance(dataset_cfg.get(key), str | Path | None):
            raise ConfigError(f"{key} must be a folder (a string); got {dataset_cfg[key]!r}")
    report = PrepareReport()
    with reads_within(limit_of(dataset_cfg)):
        root = data_root(data_path or dataset_cfg.get("DATA_PATH") or "data/kitti")
        out = Path(out_dir or dataset_cfg.get("INFO_ROOT") or root)
        splits = read_splits(root)
        needs_image = bool(dataset_cfg.get("FOV_POINTS_ONLY"))
        check_folders(root / "training", needs_image)
        with writing_infos(out):
            frames = _read_all(root, out, splits, workers, report, needs_image)
            _write_all(out, splits, frames, report)
            for split in splits:
                packed_file(KITTI_INFOS, [out / f"kitti_infos_{split}.pkl"], log)
            packed_file(DATABASE, [out / "kitti_dbinfos_train.pkl"], log)
    _log(log, report, out, class_names)
    return report


def data_root(path: str | Path) -> Path:
    """``path`` if KITTI's ``training`` or ``testing`` folder is in it, else DataError."""
    root = Path(path)
    folders = [root / name for name in ("training", "testing")]
    if not any(timed(folder, folder.is_dir) for folder in folders):
        raise DataError(
            f"KITTI is expected at {root.absolute()} with training/{{velodyne,calib,label_2,image_2}} and "
            "ImageSets/, but no such folder is there. Set DATA_CONFIG.DATA_PATH to where it is; write the "
            f"info files with `{PREPARE_HINT} --set DATA_PATH {root}`"
        )
    return root


def read_splits(root: Path) -> dict[str, list[str]]:
    """Frame ids of each split that has a file in ImageSets; trainval is train and val where it has none."""
    splits = {}
    for split in SPLITS:
        path = root / "ImageSets" / f"{split}.txt"
        if timed(path, path.is_file):
            splits[split] = read_frame_ids(path)
    missing = [f"{split}.txt" for split in ("train", "val") if split not in splits]
    if missing:
        raise DataError(
            f"{root / 'ImageSets'} must hold train.txt and val.txt (one frame id a line); "
            f"{' and '.join(missing)} is not there"
        )
    splits.setdefault("trainval", list(dict.fromkeys(splits["train"] + splits["val"])))
    return splits


def check_folders(folder: Path, needs_image: bool) -> None:
    """Raise DataError where a folder of frames is missing, and name the one that is there instead of it."""
    for kind in ("velodyne", "calib", "label_2", *(["image_2"] if needs_image else [])):
        path = folder / kind
        if not timed(path, path.is_dir):
            cure = ". Without images, set FOV_POINTS_ONLY: False" if kind == "image_2" else ""
            raise DataError(
                f"KITTI's layout has {folder.name}/{kind}, but {path} is not there{folders_beside(path)}"
                f"{cure}"
            )


def _read_all(
    root: Path,
    out: Path,
    splits: dict[str, list[str]],
    workers: int,
    report: PrepareReport,
    needs_image: bool,
) -> dict[str, dict[str, _Frame]]:
    """Frames of 'training' and of 'testing' by id; the bad ones go into the report."""
    labelled = list(dict.fromkeys(splits["train"] + splits["val"] + splits["trainval"]))
    pasted = set(splits["train"])
    with reading_pool(workers) as pool:
        training = FrameFiles(root / "training")
        found = {
            "training": _read(
                training, labelled, pool, report, needs_image, lambda frame: out if frame in pasted else None
            ),
            "testing": _read(
                FrameFiles(root / "testing"), splits.get("test", []), pool, report, needs_image, None
            ),
        }
    if not found["training"]:
        first = next(iter(report.skipped.values()), "ImageSets lists none")
        raise DataError(f"{root} has no usable frame; the first fault: {first}")
    return found


def _read(
    files: FrameFiles,
    ids: list[str],
    pool: ThreadPoolExecutor,
    report: PrepareReport,
    needs_image: bool,
    database_of: Callable[[str], Path | None] | None,
) -> dict[str, _Frame]:
    """Read the frames ``ids``; ``database_of(id)``: where its objects go (None: the split has no labels)."""
    limit = current_limit()

    def one(frame: str) -> _Frame | DataError:
        try:
            with reads_within(limit):  # of a thread of its own
                info, points = frame_info(files, frame, database_of is not None, needs_image)
        except DataError as error:
            return error
        out = database_of(frame) if database_of is not None else None
        return _Frame(info, write_objects(out, info, points) if out is not None else [])

    found, log = {}, logging.getLogger("pcdet_freeze.prepare").info
    results = progress(pool.map(one, ids), len(ids), files.folder.name, "frame", log)
    for frame, result in zip(ids, results, strict=True):
        if isinstance(result, DataError):
            report.skipped[f"{files.folder.name}/{frame}"] = str(result)
        else:
            found[frame] = result
            if result.info["image"]["image_shape"] is None:
                report.without_image.append(frame)
            if has_scores(result.info.get("annos", {})):
                report.scored.append(frame)
    return found


def _write_all(
    out: Path, splits: dict[str, list[str]], frames: dict[str, dict[str, _Frame]], report: PrepareReport
) -> None:
    for split, ids in splits.items():
        known = frames["testing" if split == "test" else "training"]
        infos = [known[frame].info for frame in ids if frame in known]
        write_pickle(out / f"kitti_infos_{split}.pkl", infos)
        report.frames[split] = len(infos)
    database: dict[str, list[Info]] = {}
    for frame in splits["train"]:
        for entry in frames["training"][frame].objects if frame in frames["training"] else ():
            database.setdefault(entry["name"], []).append(entry)
    write_pickle(out / "kitti_dbinfos_train.pkl", database)
    report.objects = {name: len(entries) for name, entries in database.items()}


def _log(log: logging.Logger, report: PrepareReport, out: Path, class_names: Sequence[str]) -> None:
    for name, reason in report.skipped.items():
        log.warning("skipped frame %s: %s", name, reason)
    if report.scored:
        log.warning(
            "label lines of %d frames have a score (16 fields), as results of a detector have: %s",
            len(report.scored),
            ", ".join(report.scored[:8]),
        )
    if report.without_image:
        log.info(
            "%d frames have no image: FOV_POINTS_ONLY must stay False, and 2D boxes are those of the azimuth",
            len(report.without_image),
        )
    for name in class_names:
        if name not in report.objects:
            log.warning("the training split has no %s: gt_sampling will have none to paste", name)
    log.info("written to %s: %s", out, report)
