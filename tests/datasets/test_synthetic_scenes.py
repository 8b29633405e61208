"""The simulator: scenes are pure functions, rays stop at the first surface, labels match the hit."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pcdet_freeze.datasets.synthetic.labels import LABEL, LaneGrid, lines_in_grid, occlusion_level
from pcdet_freeze.datasets.synthetic.raycast import hits_alone, nearest_hits
from pcdet_freeze.datasets.synthetic.render import Frame, render
from pcdet_freeze.datasets.synthetic.scene import Scene, draw_scene
from pcdet_freeze.datasets.synthetic.sensor import BEAM_STAGGER, BEAMS, Sensor, rays
from pcdet_freeze.datasets.synthetic.shapes import CYLINDER, ELLIPSOID, HEXAHEDRON, solid, solid_table

LIMITS = np.array([-25.6, -25.6, -3.0, 25.6, 25.6, 1.0], np.float32)
GRID = LaneGrid(-25.6, -25.6, 25.6, 25.6, 0.32)
SENSOR = Sensor(elevations=BEAMS["HDL-32E"], azimuth_step=0.5)
KEY = np.uint64(7)


def scene_of(index: int, seed: int = 3) -> Scene:
    return draw_scene(seed, index, sensor_height=1.73, reach=33.6)


def frame_of(index: int, seed: int = 3, sensor: Sensor = SENSOR) -> Frame:
    return render(scene_of(index, seed), sensor, LIMITS, GRID, 0.3)


def fingerprint(index: int, seed: int = 3) -> str:
    """Digest of every bit of a frame."""
    frame = frame_of(index, seed)
    arrays = [
        getattr(frame, name) for name in ("points", "labels", "owner", "boxes", "occlusion", "lane_map")
    ]
    return hashlib.sha256(b"".join(array.tobytes() for array in [*arrays, *frame.polylines])).hexdigest()


@pytest.fixture(scope="module")
def frames() -> list[Frame]:
    return [frame_of(index, sensor=Sensor(azimuth_step=0.5)) for index in range(12)]


def block(x: float, y: float, half: tuple[float, float, float], owner: int = -1) -> tuple[float, ...]:
    return solid(HEXAHEDRON, (x, y, 0.0), half, 0.0, label=LABEL["clutter"], reflectivity=0.5, owner=owner)


def test_a_scene_is_the_same_twice_and_in_another_order() -> None:
    first = [fingerprint(index) for index in (0, 1, 2)]
    assert [fingerprint(index) for index in (2, 0, 1)] == [first[2], first[0], first[1]]


def test_a_scene_is_the_same_in_another_process() -> None:
    code = "import test_synthetic_scenes as t; print(t.fingerprint(4))"
    folder = __file__.rpartition("/")[0]
    out = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == fingerprint(4)


def test_other_seeds_and_indices_give_other_scenes() -> None:
    assert len({fingerprint(index, seed) for seed in (1, 2) for index in (0, 1, 2)}) == 6


def test_a_scene_does_not_disturb_numpys_global_random_state() -> None:
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    frame_of(0)
    assert np.array_equal(np.random.get_state()[1], before)


def test_nothing_is_hit_behind_a_wall() -> None:
    solids = solid_table([block(10.0, 0.0, (0.2, 6.0, 3.0)), block(16.0, 0.0, (1.0, 1.0, 1.0))])
    revolution = rays(SENSOR, 0.3)
    ground = scene_of(0).street.ground
    behind = nearest_hits(solids[1:], ground, revolution, 40.0, KEY)
    both = nearest_hits(solids, ground, revolution, 40.0, KEY)
    assert (behind.what == 0).sum() > 20 and (both.what == 1).sum() == 0
    wall_rays = set(both.ray[both.what == 0])
    assert set(behind.ray[behind.what == 0]) <= wall_rays
    assert both.range[both.what == 0].max() < 14.0


def test_every_ray_has_one_hit_and_it_is_the_nearest_of_all_solids() -> None:
    scene, revolution = scene_of(1), rays(replace(SENSOR, azimuth_step=2.0), 0.1)
    solids = scene.solids.copy()
    solids["density"] = 0.0
    whole = nearest_hits(solids, scene.street.ground, revolution, 40.0, KEY)
    best = np.full(180 * 32, np.inf)
    for one in solids:
        single = nearest_hits(np.array([one]), scene.street.ground, revolution, 40.0, KEY)
        best[single.ray] = np.minimum(best[single.ray], single.range)
    assert len(np.unique(whole.ray)) == len(whole.ray)
    assert np.array_equal(whole.range, best[whole.ray]) and np.isfinite(best).sum() == len(whole.ray)


def slab_ranges(box: tuple[float, ...], directions: np.ndarray) -> np.ndarray:
    """Range (R,) at which rays from the origin enter a box (x, y, z, half x, y, z, yaw); inf: they miss."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    centre, local = turn @ np.array(box[:3]), directions @ turn.T
    ends = np.stack([(centre + side * np.array(box[3:6])) / local for side in (-1, 1)])
    enter, leave = ends.min(axis=0).max(axis=1), ends.max(axis=0).min(axis=1)
    return np.where((enter < leave) & (enter > 0), enter, np.inf)


def test_hits_on_boxes_equal_a_slab_test_of_every_ray() -> None:
    rng, sensor = np.random.RandomState(0), replace(SENSOR, azimuth_step=1.0)
    away, around = rng.uniform(4, 30, 40), rng.uniform(-np.pi, np.pi, 40)
    places = np.column_stack([away * np.cos(around), away * np.sin(around), rng.uniform(-3, 2, 40)])
    boxes = np.column_stack([places, rng.uniform(0.1, 2.0, (40, 3)), rng.uniform(-4, 4, 40)])
    rows = [
        solid(HEXAHEDRON, tuple(b[:3]), tuple(b[3:6]), b[6], label=9, reflectivity=0.5)
        for b in boxes.tolist()
    ]
    deep = scene_of(0).street.ground._replace(sensor_height=1e4)
    revolution = rays(sensor, 1.1)
    hits = nearest_hits(solid_table(rows), deep, revolution, 60.0, KEY)
    elevation, stagger = np.deg2rad(sensor.elevations), np.deg2rad(np.resize(BEAM_STAGGER, 32))
    azimuth = 1.1 + revolution.step * np.arange(360)[:, None] + stagger
    flat = np.stack([np.cos(azimuth), np.sin(azimuth)], axis=2) * np.cos(elevation)[:, None]
    up = np.broadcast_to(np.sin(elevation)[:, None], (360, 32, 1))
    directions = np.concatenate([flat, up], axis=2).reshape(-1, 3)
    ranges = np.min([slab_ranges(tuple(box), directions) for box in boxes], axis=0)
    assert np.array_equal(hits.ray, np.flatnonzero(np.isfinite(ranges))) and len(hits.ray) > 500
    assert np.allclose(hits.range, ranges[hits.ray], atol=1e-9)


@pytest.mark.parametrize(("kind", "upright"), [(ELLIPSOID, 1.0), (CYLINDER, 0.0)])
def test_hits_on_round_solids_lie_on_their_surface_and_face_the_sensor(kind: int, upright: float) -> None:
    half = np.array([0.8, 1.3, 1.1])
    table = solid_table([solid(kind, (7.0, 0.0, -1.5), tuple(half), 0.0, label=9, reflectivity=0.5)])
    deep = scene_of(0).street.ground._replace(sensor_height=1e4)
    revolution = rays(replace(SENSOR, elevations=(-12.0,)), 0.0)
    hits = nearest_hits(table, deep, revolution, 60.0, KEY)
    azimuth = revolution.step * hits.ray + np.deg2rad(BEAM_STAGGER[0])
    lift = np.deg2rad(-12.0)
    points = hits.range[:, None] * np.stack(
        [np.cos(azimuth) * np.cos(lift), np.sin(azimuth) * np.cos(lift), np.full(len(azimuth), np.sin(lift))],
        axis=1,
    )
    scaled = (points - [7.0, 0.0, -1.5]) / half * [1.0, 1.0, upright]
    assert np.allclose((scaled**2).sum(axis=1), 1.0) and len(points) > 20
    assert ((hits.facing > 0) & (hits.facing <= 1)).all() and (points[:, 0] < 7.0).all()


def test_an_object_cast_alone_is_hit_as_if_nothing_hid_it() -> None:
    target = solid_table([block(16.0, 0.0, (1.0, 1.0, 1.0), owner=0)])
    revolution = rays(SENSOR, 0.3)
    alone = hits_alone(target, target, np.array([0, 1]), revolution, 40.0, KEY)
    high = scene_of(0).street.ground._replace(sensor_height=5.0)  # ground too low to cut the target
    open_view = nearest_hits(target, high, revolution, 40.0, KEY)
    seen = open_view.what == 0
    assert np.array_equal(np.sort(alone.ray), np.sort(open_view.ray[seen])) and seen.sum() > 20


def test_occlusion_is_the_hidden_share_of_the_points_that_an_object_alone_would_get(
    frames: list[Frame],
) -> None:
    for frame in frames:
        own = np.bincount(frame.owner[frame.owner >= 0], minlength=len(frame.boxes))
        assert (own <= frame.alone).all() and (frame.num_points <= own).all()
        shown = frame.alone > 0
        assert np.array_equal(frame.occlusion[shown], 1 - own[shown] / frame.alone[shown])
    shares = np.concatenate([frame.occlusion[frame.num_points >= 5] for frame in frames])
    assert (shares < 0.05).mean() > 0.2 and (shares > 0.25).mean() > 0.15


def test_levels_of_occlusion_and_of_too_few_points() -> None:
    levels = [occlusion_level(share, 9, 5) for share in (0.0, 0.24, 0.25, 0.74, 0.75, 1.0)]
    assert levels == [0, 0, 1, 1, 2, 2] and occlusion_level(0.0, 4, 5) == 3


def test_points_of_an_object_lie_in_its_box_and_carry_its_class(frames: list[Frame]) -> None:
    label_of = {"Car": LABEL["car"], "Pedestrian": LABEL["pedestrian"], "Cyclist": LABEL["cyclist"]}
    slack = 3.5 * SENSOR.range_noise + 0.01
    for frame in frames:
        for number, (box, name) in enumerate(zip(frame.boxes, frame.names, strict=True)):
            own = frame.owner == number
            away = frame.points[own, :3] - box[:3]
            cos, sin = np.cos(box[6]), np.sin(box[6])
            local = np.stack(
                [away[:, 0] * cos + away[:, 1] * sin, away[:, 1] * cos - away[:, 0] * sin], axis=1
            )
            assert (np.abs(local) <= box[3:5] / 2 + slack).all(), name
            assert (np.abs(away[:, 2]) <= box[5] / 2 + slack).all(), name
            assert (frame.labels[own] == label_of[name]).all()
        things = np.isin(frame.labels, list(label_of.values()))
        assert np.array_equal(things, frame.owner >= 0)


def test_all_classes_occur_and_stray_points_are_ignored(frames: list[Frame]) -> None:
    labels = np.concatenate([frame.labels for frame in frames])
    assert set(np.unique(labels)) == {*range(11), 255}
    assert (labels == 255).mean() < 0.001


def test_objects_do_not_overlap() -> None:
    from pcdet_freeze.ops.iou import rotated_intersection

    for index in range(6):
        flat = scene_of(index).boxes[:, [0, 1, 3, 4, 6]]
        shared = rotated_intersection(flat, flat)
        assert np.allclose(shared - np.diag(np.diag(shared)), 0.0)


def test_the_ground_lies_at_the_sensors_height_below_it(frames: list[Frame]) -> None:
    for frame in frames:
        near = (frame.labels == LABEL["road"]) & (np.hypot(*frame.points[:, :2].T) < 6.0)
        assert abs(np.median(frame.points[near, 2]) + 1.73) < 0.1


def test_paint_is_brighter_than_asphalt_on_average_but_overlaps_with_it(frames: list[Frame]) -> None:
    shares = []
    for frame in frames:
        paint = frame.points[frame.labels == LABEL["lane_marking"], 3]
        asphalt = frame.points[frame.labels == LABEL["road"], 3]
        bins = [np.histogram(part, bins=25, range=(0, 1))[0] / len(part) for part in (paint, asphalt)]
        shares.append(np.minimum(*bins).sum())
        assert paint.mean() > asphalt.mean()
    assert 0.3 < np.mean(shares) < 0.8


def test_paint_lies_on_the_polylines(frames: list[Frame]) -> None:
    for frame in frames:
        paint = frame.points[(frame.labels == LABEL["lane_marking"]) & (np.abs(frame.points[:, 0]) < 20)]
        paint = paint[np.abs(paint[:, 1]) < 15]
        away = [
            np.abs(paint[:, 1] - np.interp(paint[:, 0], line[:, 0], line[:, 1])) for line in frame.polylines
        ]
        assert np.min(away, axis=0).max() < 0.3


def test_the_lane_raster_agrees_with_the_polylines(frames: list[Frame]) -> None:
    for frame in frames:
        assert set(np.unique(frame.lane_map)) == {255, *range(len(frame.polylines))}
        for number, line in enumerate(frame.polylines):
            rows = np.floor((line[:, 1] - GRID.y_min) / GRID.cell).astype(int)
            columns = np.floor((line[:, 0] - GRID.x_min) / GRID.cell).astype(int)
            near = [frame.lane_map[np.clip(rows + step, 0, 159), columns] == number for step in (-1, 0, 1)]
            assert np.any(near, axis=0).all()


def test_lane_indices_run_from_left_to_right(frames: list[Frame]) -> None:
    for frame in frames:
        middle = [line[np.argmin(np.abs(line[:, 0])), 1] for line in frame.polylines]
        assert middle == sorted(middle, reverse=True)


def test_a_line_outside_the_grid_gets_no_index() -> None:
    street = scene_of(0).street
    far = replace(street.lines[0], offset=60.0)
    assert lines_in_grid([far, *street.lines], street.ground, GRID) == street.lines


def test_far_and_dark_surfaces_lose_more_echoes() -> None:
    bare = frame_of(0, sensor=replace(SENSOR, dropout=0.0))
    real = frame_of(0)
    kept = [
        (np.linalg.norm(frame.points[:, :3], axis=1) > 20).sum()
        / (np.linalg.norm(frame.points[:, :3], axis=1) < 10).sum()
        for frame in (bare, real)
    ]
    assert len(real.points) < len(bare.points) and kept[1] < kept[0]
