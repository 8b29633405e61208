"""nuScenes' tables (JSON, one row a record), reduced to what the LiDAR's frames need.

``sample_data`` and ``ego_pose`` have 2.6 million rows, of which the LiDAR has one in eight: rows that are not
needed are dropped while the file is parsed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from pcdet_freeze.datasets.reading.timed_reads import timed
from pcdet_freeze.errors import DataError

Row = dict[str, Any]
Rules = dict[str, Callable[[Any], bool]]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < MOST  # NaN compares as False


def _is_vector(length: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and len(value) == length and all(map(_is_number, value))


def _is_matrix(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_vector(3), value))


MOST = 1e18
"""of a number in a table; times are in microseconds"""
_POSE: Rules = {"translation": _is_vector(3), "rotation": _is_vector(4)}
NEEDED: dict[str, Rules] = {
    "sample": {"scene_token": _is_text, "timestamp": _is_number},
    "scene": {"name": _is_text, "log_token": _is_text},
    "log": {"location": _is_text},
    "instance": {"category_token": _is_text},
    "category": {"name": _is_text},
    "sensor": {"channel": _is_text},
    "calibrated_sensor": {"sensor_token": _is_text, "camera_intrinsic": _is_matrix, **_POSE},
    "sample_annotation": {
        **dict.fromkeys(("sample_token", "instance_token", "prev", "next"), _is_text),
        **{"size": _is_vector(3), "num_lidar_pts": _is_number, "num_radar_pts": _is_number},
        **_POSE,
    },
    "sample_data": {
        **dict.fromkeys(("sample_token", "ego_pose_token", "filename", "prev"), _is_text),
        **dict.fromkeys(("timestamp", "is_key_frame"), _is_number),
    },
    "ego_pose": _POSE,
    "lidarseg": {"sample_data_token": _is_text, "filename": _is_text},
}
"""table -> columns that are read, beside the token, and what they hold"""
LIDAR, CAMERA = "LIDAR_TOP", "CAM_FRONT"
SMALL = ("sample", "scene", "log", "instance", "category", "calibrated_sensor", "sample_annotation")
"""tables that are kept as they are"""


def read_rows(path: Path, keep: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    """Rows of a table for which ``keep`` is true; DataError that names the file, and a row that is broken."""
    try:
        raw = timed(path, path.read_bytes)
        rows = json.loads(raw, object_hook=lambda row: row if keep(row) else None)
        if not isinstance(rows, list):
            raise ValueError(f"it holds a {type(rows).__name__}, not a list of rows")
    except FileNotFoundError as error:
        raise DataError(
            f"{path.absolute()}: this table of nuScenes is missing. Set DATA_PATH to the folder that holds "
            "samples, sweeps and VERSION"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a table of nuScenes ({error!r}). Fetch it again") from error
    found = [row for row in rows if isinstance(row, dict)]
    for key, rule in {"token": _is_text, **NEEDED.get(path.stem, {})}.items():
        for row in found:
            if key not in row or not rule(row[key]):
                raise DataError(
                    f"{path}: each row must have a sound {key}; got {str(row.get(key))[:80]} in the row "
                    f"{row.get('token')}. Fetch the tables again"
                )
    return found


def by_token(rows: Iterable[Row]) -> dict[str, Row]:
    """Rows by their token."""
    return {str(row["token"]): row for row in rows}


@dataclass(frozen=True)
class Tables:
    """The tables in ``folder`` (``<root>/v1.0-trainval``); each is read when it is first used."""

    folder: Path
    channels: tuple[str, ...] = (LIDAR, CAMERA)
    _cache: dict[str, Any] = field(default_factory=dict)

    def table(self, name: str) -> dict[str, Row]:
        """A whole table by token."""
        if name not in self._cache:
            self._cache[name] = by_token(read_rows(self.folder / f"{name}.json"))
        found: dict[str, Row] = self._cache[name]
        return found

    def get(self, name: str, token: str) -> Row:
        """The row of a small table; DataError where there is none."""
        return self._row(self.table(name), name, token)

    def _row(self, rows: Mapping[str, Row], name: str, token: str) -> Row:
        if token not in rows:
            raise DataError(f"{self.folder / name}.json: has no row {token!r}. Fetch the tables again")
        return rows[token]

    @cached_property
    def sensors(self) -> dict[str, str]:
        """Token of a calibrated sensor -> its channel, for ``channels``."""
        channels = {token: str(row["channel"]) for token, row in self.table("sensor").items()}
        found = {
            token: channels.get(row["sensor_token"], "")
            for token, row in self.table("calibrated_sensor").items()
        }
        return {token: channel for token, channel in found.items() if channel in self.channels}

    @cached_property
    def sample_data(self) -> dict[str, Row]:
        """All sweeps of the LiDAR, and the annotated images of the front camera."""

        def keep(row: Row) -> bool:
            channel = self.sensors.get(row["calibrated_sensor_token"])
            return channel == LIDAR or (channel is not None and bool(row["is_key_frame"]))

        return by_token(read_rows(self.folder / "sample_data.json", keep))

    @cached_property
    def key_frames(self) -> dict[tuple[str, str], Row]:
        """(token of a sample, channel) -> the sample_data that was annotated."""
        return {
            (row["sample_token"], self.sensors[row["calibrated_sensor_token"]]): row
            for row in self.sample_data.values()
            if row["is_key_frame"]
        }

    @cached_property
    def ego_poses(self) -> dict[str, Row]:
        """Those of ``sample_data``."""
        wanted = {row["ego_pose_token"] for row in self.sample_data.values()}
        return by_token(read_rows(self.folder / "ego_pose.json", lambda row: row["token"] in wanted))

    @cached_property
    def annotations(self) -> dict[str, list[Row]]:
        """Token of a sample -> its boxes, in the order of the table."""
        found: dict[str, list[Row]] = {}
        for row in self.table("sample_annotation").values():
            found.setdefault(row["sample_token"], []).append(row)
        return found

    @cached_property
    def lidarseg(self) -> dict[str, str]:
        """Token of a sample_data -> file of its point labels; empty without lidarseg."""
        path = self.folder / "lidarseg.json"
        if not timed(path, path.is_file):
            return {}
        return {row["sample_data_token"]: str(row["filename"]) for row in read_rows(path)}

    def load(self) -> Tables:
        """Read all tables now; returns itself. Without it each is read when it is first used.

        Several threads that use them afterwards would each read a table that was not read before.
        """
        for name in SMALL:
            self.table(name)
        _ = (self.key_frames, self.ego_poses, self.annotations, self.lidarseg)
        return self

    def pose_of(self, sample_data: Row) -> Row:
        """The vehicle's pose when ``sample_data`` was measured."""
        return self._row(self.ego_poses, "ego_pose", sample_data["ego_pose_token"])

    def sweep_before(self, sample_data: Row) -> Row:
        """The sweep that was measured before ``sample_data``, which has one."""
        return self._row(self.sample_data, "sample_data", sample_data["prev"])

    def category_of(self, annotation: Row) -> str:
        """The category of a box, such as vehicle.car."""
        instance = self.get("instance", annotation["instance_token"])
        return str(self.get("category", instance["category_token"])["name"])

    def samples_of(self, scenes: Iterable[str]) -> list[Row]:
        """Samples of the scenes with these names, scene by scene in the order of the table, by time."""
        names = set(scenes)
        order = {
            token: k for k, (token, row) in enumerate(self.table("scene").items()) if row["name"] in names
        }
        mine = [row for row in self.table("sample").values() if row["scene_token"] in order]
        return sorted(mine, key=lambda row: (order[row["scene_token"]], row["timestamp"]))

    def location_of(self, sample: Row) -> str:
        """The map that a sample lies in, such as boston-seaport."""
        scene = self.get("scene", sample["scene_token"])
        return str(self.get("log", scene["log_token"])["location"])
