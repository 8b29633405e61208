"""Write ``<tag>_infos_{train,val}.pkl``, ``<tag>_waymo_dbinfos_train_sampled_1.pkl`` and its database.

The segments are those that OpenPCDet's conversion of the raw files left. A training reads their own infos;
the joined ones are for other tools, the database is for gt_sampling. Each segment's part is written as soon
as it is done: an interrupted run continues from there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.datasets.augmentor.database import DATABASE
from pcdet_freeze.datasets.file_formats.files import read_pickle, write_pickle
from pcdet_freeze.datasets.packed import INFOS, frame_of, packed_file
from pcdet_freeze.datasets.packed.kinds import list_of_frames
from pcdet_freeze.datasets.prepare_parts import (
    Frames,
    PrepareReport,
    key_of,
    make_parts,
    parts_folder,
    write_database,
    write_objects,
)
from pcdet_freeze.datasets.reading.timed_reads import limit_of, reads_within
from pcdet_freeze.datasets.registry import Config
from pcdet_freeze.datasets.waymo.dataset import WaymoDataset, find_infos
from pcdet_freeze.datasets.waymo.segments import Info, boxes_of, points_path, read_points
from pcdet_freeze.datasets.waymo.settings import WaymoSettings
from pcdet_freeze.errors import DataError

PARTS = ".waymo_parts"
SPARSE = {"Vehicle": 4, "Pedestrian": 2}
"""of classes with many objects, those of every such frame are in the database, as in OpenPCDet's"""


def prepare_waymo(
    dataset_cfg: Config,
    class_names: Sequence[str],
    out_dir: str | Path | None = None,
    workers: int = 4,
    logger: logging.Logger | None = None,
) -> PrepareReport:
    """Read the segments of the splits train and val at DATA_PATH; write infos and objects of the training.

    ``out_dir`` defaults to INFO_ROOT, then to the data folder. The database holds objects of ``class_names``.
    A segment or frame that cannot be read is left out, named with its reason, and counted. Finished segments
    of an interrupted run are not read again, unless their infos or the config changed. Each file is written
    whole or not at all. Large lists are packed too (``datasets.packed``).

    Raises:
        DataError: no list of segments, no good segment, a folder that cannot be written.
        ReadTimeoutError: a file is not read within DATA_CONFIG.TIMEOUT; the message names it.
    """
    log = logger or logging.getLogger("pcdet_freeze")
    report = PrepareReport("frame")
    with reads_within(limit_of(dataset_cfg)):
        job = _Job(dataset_cfg, list(class_names), out_dir, workers, log, report)
        with parts_folder(job.out, PARTS) as folder:
            job.run(folder)
    report.log(log, class_names, job.out)
    return report


class _Job:
    """One run of `prepare waymo`."""

    def __init__(
        self,
        cfg: Config,
        names: list[str],
        out: str | Path | None,
        workers: int,
        log: logging.Logger,
        report: PrepareReport,
    ) -> None:
        self.cfg, self.names, self.workers, self.log, self.report = cfg, names, workers, log, report
        self.settings: WaymoSettings = WaymoDataset.read_settings(cfg)
        self.root = Path(self.settings.data_path or ".")
        self.tag = self.settings.processed_data_tag
        self.folder = self.root / self.tag
        self.out = Path(out or self.settings.info_root or self.root)

    def run(self, folder: Path) -> None:
        """Infos of both splits, then the database of the training."""
        segments = {split: self._segments(split) for split in ("train", "val")}
        for split, found in segments.items():
            infos = [info for _, _, infos in found for info in infos]
            write_pickle(self.out / f"{self.tag}_infos_{split}.pkl", infos)
        parts = make_parts(self._frames(segments["train"]), folder, self.workers, self.report)
        for part in parts:
            self.report.skipped.update(part["skipped"])
        for split, found in segments.items():
            self.report.frames[split] = sum(len(infos) for _, _, infos in found)
        database = self.out / f"{self.tag}_waymo_dbinfos_train_sampled_1.pkl"
        write_database(database, parts, self.report)
        for split, found in segments.items():
            target = self.out / f"{self.tag}_infos_{split}.packed"
            packed_file(INFOS, [path for path, _, _ in found], self.log, target)
        packed_file(DATABASE, [database], self.log)

    def _segments(self, split: str) -> list[tuple[Path, int, list[Info]]]:
        """Info file, number of the first frame in the split, and infos of each segment."""
        found, begin = [], 0
        for path in find_infos(self.root, self.folder, split, self.log):
            try:
                infos = list_of_frames(read_pickle(path), path)[""]
            except DataError as error:
                self.report.skipped[path.stem] = str(error)
                continue
            found.append((path, begin, infos))
            begin += len(infos)
        if not found:
            first = next(iter(self.report.skipped.values()))
            raise DataError(f"{self.folder} has no usable segment for {split}; the first fault: {first}")
        return found

    def _frames(self, segments: Sequence[tuple[Path, int, list[Info]]]) -> Frames:
        """The parts of the database, one per segment."""

        def key(index: int) -> str:
            path, begin, _ = segments[index]
            return key_of([path], dict(self.cfg), begin, self.names)

        def make(index: int) -> Info:
            _, begin, infos = segments[index]
            entries: list[Info] = []
            skipped: dict[str, str] = {}
            for number, info in enumerate(infos):
                try:
                    entries += self._objects(info, begin + number)
                except DataError as error:
                    skipped[frame_of(info, number)] = str(error)
            return {"objects": entries, "skipped": skipped}

        return Frames("train", [path.stem for path, _, _ in segments], key, make)

    def _objects(self, info: Info, number: int) -> list[Info]:
        """Write the objects of frame ``number`` of the split; returns their entries."""
        labels = boxes_of(info, frame_of(info, number))
        if labels is None:
            return []
        wanted = [
            name in self.names and number % SPARSE.get(name, 1) == 0 for name in labels["name"].tolist()
        ]
        chosen = np.array(wanted, bool)
        if not chosen.any():
            return []
        path = points_path(self.folder, info)
        points = read_points(path, self.settings.disable_nlz_flag_on_points, self.settings.points_tanh_dim)
        cloud: Any = info["point_cloud"]
        name, sample = str(cloud["lidar_sequence"]), int(cloud["sample_idx"])
        entries = write_objects(
            self.out,
            f"{self.tag}_gt_database_train_sampled_1",
            f"{name}_{sample:04d}",
            points,
            labels["boxes"][chosen],
            labels["name"][chosen].tolist(),
        )
        more = {"sequence_name": name, "sample_idx": sample}
        levels = labels["difficulty"][chosen]
        return [{**entry, **more, "difficulty": level} for entry, level in zip(entries, levels, strict=True)]
