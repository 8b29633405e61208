"""Write nuscenes_infos_*.pkl, nuscenes_dbinfos_*.pkl and the database of objects, in OpenPCDet's format."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.augmentor.database import DATABASE
from pcdet_freeze.datasets.file_formats.files import write_pickle
from pcdet_freeze.datasets.nuscenes.classes import IGNORED
from pcdet_freeze.datasets.nuscenes.dataset import find_root
from pcdet_freeze.datasets.nuscenes.frame import has_boxes, read_boxes, read_points, turn_boxes, turn_points
from pcdet_freeze.datasets.nuscenes.infos import Info, sample_info, sweeps_before
from pcdet_freeze.datasets.nuscenes.lists import NUSCENES_INFOS
from pcdet_freeze.datasets.nuscenes.official import EXTRA
from pcdet_freeze.datasets.nuscenes.settings import NuScenesSettings
from pcdet_freeze.datasets.nuscenes.tables import LIDAR, SMALL, Row, Tables
from pcdet_freeze.datasets.packed import packed_file
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
from pcdet_freeze.errors import ConfigError, DataError
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.sections import read_section
from pcdet_freeze.utils.untrusted_files.inside import inside

PARTS = ".nuscenes_parts"
TABLES = (*SMALL, "sensor", "sample_data", "ego_pose", "lidarseg")
"""tables that a part depends on"""


def prepare_nuscenes(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the tables of VERSION; write the infos of DATA_SPLIT and the objects of its training frames.

    The files have the names of INFO_PATH, ``nuscenes_dbinfos_<MAX_SWEEPS>sweeps_withvelo.pkl`` and
    ``gt_database_<MAX_SWEEPS>sweeps_withvelo/`` (with ``_x_forward``: objects in that frame) in ``out_dir``,
    which defaults to INFO_ROOT, then to the folder of the data. A bad frame is left out, named with its
    reason, and counted. Frames that an interrupted run finished are not read again, unless their files, the
    tables or the config changed. Each file is written whole or not at all.

    Raises:
        DataError: a table or a split that is not there, no good frame, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log = logger or logging.getLogger("pcdet_freeze")
    settings, faults = read_section(NuScenesSettings, dataset_cfg, "DATA_CONFIG")
    raise_faults(faults)
    assert settings is not None
    with reads_within(limit_of(dataset_cfg)):
        job = _Job(settings, dataset_cfg)
        out = Path(out_dir or settings.info_root or job.root)
        with parts_folder(out, PARTS) as folder:
            report = job.write(out, folder, workers)
            job.pack(out, log)
    report.log(log, class_names, out)
    return report


class _Job:
    """The tables, and the samples of each mode."""

    def __init__(self, settings: NuScenesSettings, dataset_cfg: Config) -> None:
        self.settings, self.dataset_cfg = settings, dict(dataset_cfg)
        self.root = find_root(Path(settings.data_path or "."), settings.version)
        self.tables = Tables(self.root / settings.version)
        splits = {"train": settings.data_split.train, "test": settings.data_split.test}
        self.tables.load()
        self.samples = {mode: self._samples(split) for mode, split in splits.items()}
        self.state = key_of([self.tables.folder / f"{name}.json" for name in TABLES], self.dataset_cfg)
        frame = "_x_forward" if settings.x_forward else ""
        self.suffix = f"{settings.max_sweeps}sweeps_withvelo{frame}"

    def _samples(self, split: str) -> list[Row]:
        scenes = scenes_of(self.tables.folder, self.settings.version, split)
        found = self.tables.samples_of(scenes)
        if not found:
            raise DataError(
                f"{self.tables.folder} has no scene of the split {split}, such as {', '.join(scenes[:2])}. "
                "Check VERSION and DATA_SPLIT"
            )
        return found

    def write(self, out: Path, folder: Path, workers: int) -> PrepareReport:
        report = PrepareReport()
        for mode, samples in self.samples.items():
            parts = make_parts(self._frames(mode, samples, out), folder, workers, report)
            (name, *_) = getattr(self.settings.info_path, mode)
            write_pickle(inside(out, name, "a name of INFO_PATH"), [part["info"] for part in parts])
            if mode == "train":
                write_database(self.database(out), parts, report)
        return report

    def pack(self, out: Path, log: logging.Logger) -> None:
        """Pack large lists, so that no training has to."""
        modes = self.settings.info_path
        for names in (modes.train, modes.test):
            packed_file(NUSCENES_INFOS, [out / name for name in names], log)
        packed_file(DATABASE, [self.database(out)], log)

    def database(self, out: Path) -> Path:
        """The database's info file."""
        return out / f"nuscenes_dbinfos_{self.suffix}.pkl"

    def _frames(self, mode: str, samples: list[Row], out: Path) -> Frames:
        def make(index: int) -> Info:
            info = sample_info(self.tables, samples[index], self.settings.max_sweeps)
            points, _ = read_points(self.root, info, self.settings.max_sweeps)
            pasted = mode == "train" and has_boxes(info)
            return {"info": info, "objects": self._objects(info, points, out) if pasted else []}

        def key(index: int) -> str:
            newest = self.tables.key_frames.get((samples[index]["token"], LIDAR))
            older = sweeps_before(self.tables, newest, self.settings.max_sweeps - 1) if newest else []
            names = [row["filename"] for row in ([newest] if newest else []) + older]
            return key_of([inside(self.root, name, "a sweep's file") for name in names], self.state)

        return Frames(mode, [row["token"] for row in samples], key, make)

    def _objects(self, info: Info, points: np.ndarray, out: Path) -> list[Info]:
        """Write the points of each box of a detection class; the entries of the database."""
        boxes, names, _ = read_boxes(info)
        used = names != IGNORED
        if self.settings.x_forward:
            points, boxes = turn_points(points), turn_boxes(boxes)
        folder = f"gt_database_{self.suffix}"
        entries = write_objects(out, folder, info["token"], points, boxes[used], names[used].tolist())
        return [entry | {"image_idx": info["token"]} for entry in entries]


def scenes_of(folder: Path, version: str, split: str) -> list[str]:
    """Names of the scenes of a split: of ``<VERSION>/splits.json``, or the devkit's.

    train and val of v1.0-mini are mini_train and mini_val. Raises ConfigError without the devkit, DataError
    for a split that neither has.
    """
    own = _own_splits(folder / "splits.json")
    if split in own:
        return list(own[split])
    known = _devkit_splits()
    name = f"mini_{split}" if version.endswith("mini") and split in ("train", "val") else split
    if name not in known:
        names = ", ".join([*own, *known])
        raise DataError(
            f"DATA_SPLIT must name a split of nuScenes or of {folder}/splits.json ({names}); got {split!r}"
        )
    return list(known[name])


def _own_splits(path: Path) -> dict[str, list[str]]:
    """The splits in a file of one's own, as the devkit reads it; empty where there is none."""
    if not timed(path, path.is_file):
        return {}
    try:
        found = json.loads(timed(path, path.read_bytes))
        if not isinstance(found, Mapping) or not all(isinstance(names, list) for names in found.values()):
            raise ValueError("it must map names of splits to lists of scenes")
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{path}: not a file of splits ({error})") from error
    return {str(name): [str(scene) for scene in scenes] for name, scenes in found.items()}


def _devkit_splits() -> dict[str, list[str]]:
    try:
        splits: Any = import_module("nuscenes.utils.splits")
    except ImportError as error:
        raise ConfigError(
            f"The scenes of nuScenes' splits come with the nuscenes-devkit, which is not installed: {EXTRA} "
            f"({error})"
        ) from error
    found: dict[str, list[str]] = splits.create_splits_scenes()
    return found
