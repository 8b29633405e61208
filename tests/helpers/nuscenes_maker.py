"""A small nuScenes in the real table format: 3 scenes, 40 samples, sweeps, lidarseg, map expansion.

The vehicle drives with 1 m/s along a street, in each scene in another direction. Objects of all ten classes
stand or move on it. Between two samples (0.5 s) there are three further sweeps.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

VERSION = "v1.0-mini"
STEP, SWEEPS_BETWEEN, SPEED = 0.5, 3, 1.0
LIDAR_HEIGHT = 1.84
# scene (of the devkit's mini_train and mini_val), samples, map, direction of the street, place
SCENES = [
    ("scene-0061", 14, "singapore-onenorth", 0.4, (400.0, 1100.0)),
    ("scene-0103", 13, "boston-seaport", -1.2, (600.0, 1600.0)),
    ("scene-0916", 13, "boston-seaport", 2.1, (1200.0, 700.0)),
]
CATEGORIES = [
    "noise", "animal", "human.pedestrian.adult", "human.pedestrian.child",
    "human.pedestrian.construction_worker", "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer", "human.pedestrian.stroller", "human.pedestrian.wheelchair",
    "movable_object.barrier", "movable_object.debris", "movable_object.pushable_pullable",
    "movable_object.trafficcone", "static_object.bicycle_rack", "vehicle.bicycle", "vehicle.bus.bendy",
    "vehicle.bus.rigid", "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck",
    "flat.driveable_surface", "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade",
    "static.other", "static.vegetation", "vehicle.ego",
]  # fmt: skip
"""lidarseg's numbers are their places"""
ATTRIBUTES = ["vehicle.moving", "vehicle.stopped", "vehicle.parked", "cycle.with_rider",
              "cycle.without_rider", "pedestrian.sitting_lying_down", "pedestrian.standing",
              "pedestrian.moving"]  # fmt: skip


class Object(NamedTuple):
    """Seen from the vehicle at the start of the scene, x along the street."""

    category: str
    attribute: str
    place: tuple[float, float]
    size: tuple[float, float, float]
    """width, length, height"""
    heading: float
    speed: float
    points: int
    radar_points: int = 0
    samples: tuple[int, int] = (0, 99)
    """first and last sample in which it is annotated"""


OBJECTS = [
    Object("vehicle.car", "vehicle.moving", (8.0, 2.5), (1.9, 4.5, 1.6), 0.0, 1.0, 14),
    Object("vehicle.car", "vehicle.parked", (-5.0, -5.0), (1.9, 4.4, 1.6), 0.3, 0.0, 12),
    Object("vehicle.truck", "vehicle.parked", (11.0, -6.0), (2.5, 6.0, 2.9), -0.2, 0.0, 16),
    Object("vehicle.bus.rigid", "vehicle.stopped", (-8.0, 5.0), (2.9, 8.0, 3.4), 0.0, 0.0, 16),
    Object("vehicle.trailer", "vehicle.parked", (14.0, 9.0), (2.8, 8.0, 3.8), 1.5, 0.0, 14),
    Object("vehicle.construction", "vehicle.parked", (3.0, 10.0), (2.8, 6.0, 3.2), 0.8, 0.0, 12),
    Object("movable_object.barrier", "", (6.5, -4.0), (2.5, 0.5, 1.0), 0.0, 0.0, 8),
    Object("vehicle.motorcycle", "cycle.with_rider", (2.0, 5.5), (0.8, 2.1, 1.5), 3.0, -0.5, 9),
    Object("vehicle.bicycle", "cycle.without_rider", (1.0, -7.0), (0.6, 1.7, 1.3), 1.0, 0.0, 8),
    Object("human.pedestrian.adult", "pedestrian.moving", (4.5, 4.5), (0.7, 0.7, 1.8), 1.2, 0.8, 9),
    Object("human.pedestrian.child", "pedestrian.standing", (0.0, 7.5), (0.6, 0.6, 1.3), 0.0, 0.0, 6),
    Object("movable_object.trafficcone", "", (7.0, -1.0), (0.4, 0.4, 1.0), 0.0, 0.0, 6),
    Object("movable_object.trafficcone", "", (4.0, -2.5), (0.4, 0.4, 1.0), 0.0, 0.0, 5, samples=(4, 4)),
    Object("animal", "", (-2.0, 9.0), (0.5, 0.8, 0.6), 0.0, 0.0, 5),
    Object("vehicle.car", "vehicle.parked", (18.0, -9.0), (1.9, 4.4, 1.6), 0.0, 0.0, 0, radar_points=2),
    Object("vehicle.car", "vehicle.parked", (22.0, -9.0), (1.9, 4.4, 1.6), 0.0, 0.0, 0),
]
DIVIDERS = [
    ("lane_divider", 1.5, (-60.0, 4.0)), ("lane_divider", 1.5, (4.0, 60.0)),
    ("lane_divider", -2.1, (-60.0, 60.0)), ("road_divider", 5.0, (-60.0, 60.0)),
    ("lane_divider", 90.0, (-60.0, 60.0)),
]  # fmt: skip
"""layer, y and x from and to, seen from the vehicle at the start of a scene"""
LINES = (5.0, 1.5, -2.1)
"""y of the lines in range, from left to right"""
Tables = dict[str, list[dict[str, Any]]]


def token(*parts: object) -> str:
    """32 hexadecimal digits, the same for the same parts."""
    return hashlib.md5("/".join(map(str, parts)).encode()).hexdigest()


def quaternion(yaw: float) -> list[float]:
    return [float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def turn(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def make_nuscenes(root: Path, lidarseg: bool = True, maps: bool = True) -> Path:
    """Write the data set; returns ``root``, the folder that holds samples/, sweeps/ and the tables."""
    tables: Tables = defaultdict(list)
    _write_constants(tables)
    for scene in SCENES:
        _Scene(root, tables, scene, lidarseg).write()
    folder = root / VERSION
    folder.mkdir(parents=True, exist_ok=True)
    (root / "maps").mkdir(exist_ok=True)
    (root / "maps" / "map.png").write_bytes(b"")
    logs = [row["token"] for row in tables["log"]]
    tables["map"].append({"token": token("map"), "category": "semantic_prior", "filename": "maps/map.png",
                          "log_tokens": logs})  # fmt: skip
    if not lidarseg:
        tables.pop("lidarseg")
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    if maps:
        _write_maps(root)
    return root


def _write_constants(tables: Tables) -> None:
    for index, name in enumerate(CATEGORIES):
        tables["category"].append({"token": token(name), "name": name, "description": "", "index": index})
    for name in ATTRIBUTES:
        tables["attribute"].append({"token": token(name), "name": name, "description": ""})
    tables["visibility"].append({"token": "4", "level": "v80-100", "description": ""})
    for channel, modality in (("CAM_FRONT", "camera"), ("LIDAR_TOP", "lidar"), ("RADAR_FRONT", "radar")):
        tables["sensor"].append({"token": token(channel), "channel": channel, "modality": modality})


class _Scene:
    """Writes one scene: its files, and its rows of the tables."""

    def __init__(self, root: Path, tables: Tables, scene: tuple[Any, ...], lidarseg: bool) -> None:
        self.root, self.tables, self.lidarseg = root, tables, lidarseg
        self.name, self.samples, self.location, self.yaw, place = scene
        self.place = np.array([*place, 0.0])
        self.rng = np.random.RandomState(len(self.name) + self.samples)
        self.log = f"n0{self.samples}-2018-07-24-11-22-45+0800"
        self.start = 1532402927_000000 + 100_000000 * SCENES.index(scene)

    def write(self) -> None:
        tokens = [token(self.name, "sample", k) for k in range(self.samples)]
        self.tables["log"].append({"token": token(self.name, "log"), "logfile": self.log, "vehicle": "n015",
                                   "date_captured": "2018-07-24", "location": self.location})  # fmt: skip
        self.tables["scene"].append({
            "token": token(self.name), "log_token": token(self.name, "log"), "nbr_samples": self.samples,
            "first_sample_token": tokens[0], "last_sample_token": tokens[-1], "name": self.name,
            "description": ""})  # fmt: skip
        for channel, intrinsic in (("LIDAR_TOP", []), ("CAM_FRONT", np.eye(3).tolist())):
            self.tables["calibrated_sensor"].append({
                "token": token(self.name, channel), "sensor_token": token(channel),
                "translation": [0.94, 0.0, LIDAR_HEIGHT], "rotation": quaternion(-np.pi / 2),
                "camera_intrinsic": intrinsic})  # fmt: skip
        for k, name in enumerate(tokens):
            near = {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < len(tokens) else ""}
            time = self._time(k * (SWEEPS_BETWEEN + 1))
            self.tables["sample"].append(
                {"token": name, "timestamp": time, "scene_token": token(self.name)} | near
            )
        self._write_annotations(tokens)
        self._write_sweeps(tokens)

    def _time(self, sweep: int) -> int:
        return self.start + round(sweep * STEP / (SWEEPS_BETWEEN + 1) * 1e6)

    def _seconds(self, sweep: int) -> float:
        return sweep * STEP / (SWEEPS_BETWEEN + 1)

    def to_global(self, points: np.ndarray) -> np.ndarray:
        """(N, 3) along the street -> the map's frame."""
        return points @ turn(self.yaw).T + self.place

    def _centre(self, thing: Object, seconds: float) -> np.ndarray:
        along = np.array([np.cos(thing.heading), np.sin(thing.heading)]) * thing.speed * seconds
        return np.array([*(np.array(thing.place) + along), thing.size[2] / 2 + 0.05])

    def _write_annotations(self, samples: list[str]) -> None:
        for number, thing in enumerate(OBJECTS):
            seen = range(thing.samples[0], min(thing.samples[1], self.samples - 1) + 1)
            names = [token(self.name, "box", number, k) for k in seen]
            self.tables["instance"].append({
                "token": token(self.name, number), "category_token": token(thing.category),
                "nbr_annotations": len(names), "first_annotation_token": names[0],
                "last_annotation_token": names[-1]})  # fmt: skip
            for place, k in enumerate(seen):
                centre = self.to_global(self._centre(thing, k * STEP)[None])[0]
                self.tables["sample_annotation"].append({
                    "token": names[place], "sample_token": samples[k],
                    "instance_token": token(self.name, number), "visibility_token": "4",
                    "attribute_tokens": [token(thing.attribute)] if thing.attribute else [],
                    "translation": centre.tolist(), "size": list(thing.size),
                    "rotation": quaternion(self.yaw + thing.heading),
                    "prev": names[place - 1] if place else "",
                    "next": names[place + 1] if place + 1 < len(names) else "",
                    "num_lidar_pts": thing.points, "num_radar_pts": thing.radar_points})  # fmt: skip

    def _write_sweeps(self, samples: list[str]) -> None:
        number = (self.samples - 1) * (SWEEPS_BETWEEN + 1) + 1
        tokens = [token(self.name, "sweep", k) for k in range(number)]
        for k in range(number):
            sample, between = divmod(k, SWEEPS_BETWEEN + 1)
            folder = "sweeps" if between else "samples"
            file = f"{folder}/LIDAR_TOP/{self.log}__LIDAR_TOP__{self._time(k)}.pcd.bin"
            near = {"prev": tokens[k - 1] if k else "", "next": tokens[k + 1] if k + 1 < number else ""}
            # a sweep belongs to the sample that comes after it, as in nuScenes
            self._add_data(
                "LIDAR_TOP", tokens[k], samples[sample + bool(between)], k, not between, file, near
            )
            labels = self._write_points(self.root / file, self._seconds(k))
            if not between:
                image = f"samples/CAM_FRONT/{self.log}__CAM_FRONT__{self._time(k)}.jpg"
                self._add_data("CAM_FRONT", token(tokens[k], "image"), samples[sample], k, True, image, {})
                if self.lidarseg:
                    self._write_labels(tokens[k], labels)

    def _add_data(
        self, channel: str, name: str, sample: str, sweep: int, key: bool, file: str, near: dict[str, str]
    ) -> None:
        pose = self.to_global(np.array([[SPEED * self._seconds(sweep), 0.0, 0.0]]))[0]
        self.tables["ego_pose"].append({
            "token": name, "timestamp": self._time(sweep), "rotation": quaternion(self.yaw),
            "translation": pose.tolist()})  # fmt: skip
        image = (900, 1600) if channel == "CAM_FRONT" else (0, 0)
        self.tables["sample_data"].append({
            "token": name, "sample_token": sample, "ego_pose_token": name,
            "calibrated_sensor_token": token(self.name, channel), "timestamp": self._time(sweep),
            "fileformat": "pcd", "is_key_frame": key, "height": image[0], "width": image[1],
            "filename": file, "prev": "", "next": ""} | near)  # fmt: skip

    def _write_points(self, path: Path, seconds: float) -> np.ndarray:
        """Write (N, 5) x, y, z, intensity, ring; returns the lidarseg class (N,) of each point."""
        street, labels = self._street(seconds)
        vehicle = street - [SPEED * seconds, 0.0, 0.0]
        sensor = (vehicle - [0.94, 0.0, LIDAR_HEIGHT]) @ turn(-np.pi / 2)
        rest = np.column_stack([self.rng.randint(0, 256, len(sensor)), np.arange(len(sensor)) % 32])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(np.column_stack([sensor, rest]).astype("<f4").tobytes())
        return labels

    def _street(self, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, 3) along the street, and their classes: objects, road, sidewalks, a wall, noise."""
        parts, labels = [], []
        for thing in OBJECTS:
            width, length, height = thing.size
            local = self.rng.uniform(-0.45, 0.45, (thing.points, 3)) * (length, width, height)
            parts.append(local @ turn(thing.heading).T + self._centre(thing, seconds))
            labels += [CATEGORIES.index(thing.category)] * thing.points
        ground = self.rng.uniform((-25.0, -12.0, -0.03), (25.0, 12.0, 0.0), (260, 3))
        ground[:, 0] += SPEED * seconds
        parts.append(ground)
        labels += np.where(np.abs(ground[:, 1]) < 7, CATEGORIES.index("flat.driveable_surface"),
                           CATEGORIES.index("flat.sidewalk")).tolist()  # fmt: skip
        wall = self.rng.uniform((-20.0, 14.0, 0.0), (20.0, 14.2, 3.0), (30, 3))
        sensor = np.array([SPEED * seconds + 0.94, 0.0, LIDAR_HEIGHT])
        near = self.rng.uniform(-0.5, 0.5, (4, 3)) + sensor
        parts += [wall, near]  # the last ones are closer than a metre: of the own vehicle
        labels += [CATEGORIES.index("static.manmade")] * 30 + [CATEGORIES.index("noise")] * 4
        return np.concatenate(parts), np.array(labels, np.uint8)

    def _write_labels(self, name: str, labels: np.ndarray) -> None:
        file = f"lidarseg/{VERSION}/{name}_lidarseg.bin"
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(labels.tobytes())
        self.tables["lidarseg"].append({"token": name, "sample_data_token": name, "filename": file})


def _write_maps(root: Path) -> None:
    """One expansion a location, in version 1.3 of the format, with the dividers of its scenes."""
    names = ("polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane",
             "ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider", "lane_divider",
             "traffic_light", "lane_connector")  # fmt: skip
    for location in {scene[2] for scene in SCENES}:
        layers: dict[str, Any] = {name: [] for name in names}
        layers |= {
            "version": "1.3",
            "canvas_edge": [3000.0, 2100.0],
            "arcline_path_3": {},
            "connectivity": {},
        }
        for scene in [scene for scene in SCENES if scene[2] == location]:
            _add_dividers(layers, scene)
        path = root / "maps" / "expansion" / f"{location}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(layers))


def _add_dividers(layers: dict[str, Any], scene: tuple[Any, ...]) -> None:
    name, _, _, yaw, place = scene
    for number, (layer, y, ends) in enumerate(DIVIDERS):
        nodes = []
        for k, x in enumerate(np.linspace(*ends, 5)):
            where = turn(yaw) @ [x, y, 0.0] + [*place, 0.0]
            nodes.append(token(name, number, k))
            layers["node"].append({"token": nodes[-1], "x": where[0], "y": where[1]})
        line = token(name, "line", number)
        layers["line"].append({"token": line, "node_tokens": nodes})
        row: dict[str, Any] = {"token": token(name, layer, number), "line_token": line}
        if layer == "lane_divider":
            row["lane_divider_segments"] = [
                {"node_token": node, "segment_type": "DOUBLE_DASHED_WHITE"} for node in nodes]  # fmt: skip
        layers[layer].append(row)
