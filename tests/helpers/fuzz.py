"""Seeded fuzz over what users and disks can hand to a run: python tests/helpers/fuzz.py --cases 10000

A case is a kind and a seed. It damages one input, reads it as a run does, and is judged:

* refused: an exception of this package, the right answer for damage;
* accepted: what was read is plausible (finite, in range, a rotation, ...);
* a fault: any other exception, a value that is not plausible, more than ``LIMIT`` seconds.
"""

from __future__ import annotations

import argparse
import copy
import io
import pickle
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from engine_toy import toy_trainer
from kitti_maker import CALIB, CAR, DONT_CARE, WALKER, make_kitti, scene_points

from pcdet_freeze.config import load_cfg, plain
from pcdet_freeze.config.find import packaged_configs
from pcdet_freeze.datasets.checks import check_frames
from pcdet_freeze.datasets.files import read_bin, read_npy, read_pickle, write_pickle
from pcdet_freeze.datasets.kitti import KittiDataset, prepare_kitti
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.kitti.labels import DONT_CARE as NO_CARE
from pcdet_freeze.datasets.kitti.labels import read_labels
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.errors import DataError, PCDetFreezeError
from pcdet_freeze.freezing.checkpoint_meta import FreezeMetadata
from pcdet_freeze.utils.safe_torch_load import load_checkpoint

LIMIT = 10.0
CONFIGS = ("kitti_models/pointpillar.yaml", "synthetic_models/multi_task.yaml", "kitti_models/second.yaml")
RANGE = [0, -39.68, -3, 69.12, 39.68, 1]
FREE_KEYS = ("CLASS_MAP", "LABEL_MAP", "POINT_LABELS", "LOSS_WEIGHTS")
"""mappings whose keys are names of the user's"""
JUNK = (None, "", "x", "../../x", -1, 0, 2**70, 1e300, float("nan"), float("inf"), True, [], {}, [1], [[]],
        {"NAME": {}}, "[", np.nan, np.zeros((2, 2)), np.array(["x"]), np.float32(1e30))  # fmt: skip
WORDS = (
    "nan",
    "inf",
    "-1",
    "1e400",
    "1e30",
    "x",
    "",
    "0",
    "1_0",
    "٣",
    "../x",
    "DontCare",
    "-",
    "1e-16",
    "\x00",
)
Random = np.random.RandomState


@dataclass
class Bench:
    """Inputs that are damaged, made once."""

    folder: Path
    configs: dict[str, dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        cfg = load_cfg("kitti_models/pointpillar.yaml").DATA_CONFIG
        cfg.update(DATA_PATH=str(make_kitti(self.folder / "kitti", planes=True)), DATA_AUGMENTOR=[])
        self.kitti = cfg
        prepare_kitti(cfg, ["Car", "Pedestrian"], workers=1)
        self.path = self.folder / "kitti" / "kitti_infos_train.pkl"
        self.infos = read_pickle(self.path)
        toy_trainer([CheckpointHook(self.folder / "ckpt")], epochs=1).run()
        self.state = torch.load(self.folder / "ckpt" / "checkpoint_epoch_1.pth")
        self.configs = {name: plain(load_cfg(name)) for name in CONFIGS}
        self.texts = {name: (packaged_configs() / name).read_text() for name in CONFIGS}


def damaged_bytes(raw: bytes, rng: Random) -> bytes:
    """``raw`` with some bytes changed, cut off, repeated or inserted."""
    data, way = bytearray(raw), rng.randint(6)
    at = rng.randint(max(len(data), 1))
    if way == 0:
        return bytes(data[:at])
    if way == 1:
        return bytes(data[:at]) + rng.bytes(rng.randint(1, 64)) + bytes(data[at:])
    if way == 2:
        return rng.bytes(rng.randint(0, 400))
    if way == 3:
        return bytes(data[at:]) + bytes(data[:at])
    for _ in range(rng.randint(1, 8)):
        if data:
            data[rng.randint(len(data))] = rng.randint(256)
    return bytes(data)


def damaged_text(text: str, rng: Random) -> str:
    """``text`` with words or lines exchanged, dropped or repeated."""
    lines = text.splitlines()
    for _ in range(rng.randint(1, 4)):
        at, way = rng.randint(len(lines)), rng.randint(6)
        words = lines[at].split(" ")
        if way == 0:
            lines.pop(at)
        elif way == 1:
            lines.insert(at, lines[rng.randint(len(lines))])
        elif way == 2:
            lines[at] = " " * rng.randint(4) + lines[at]
        elif way == 3 and lines[at]:
            place = rng.randint(len(lines[at]))
            lines[at] = (
                lines[at][:place]
                + chr(rng.choice([9, 7, 34, 42, 58, 91, 123, 200, 0x2028]))
                + lines[at][place:]
            )
        else:
            words[rng.randint(len(words))] = WORDS[rng.randint(len(WORDS))]
            lines[at] = " ".join(words)
        lines = lines or [""]
    return "\n".join(lines) + "\n"


def nodes(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in nested dicts and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from nodes(item, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    """The value at ``path``."""
    for key in path:
        value = value[key]
    return value


def damaged_tree(value: Any, rng: Random) -> Any:
    """A copy of ``value`` with one or two of its parts exchanged for junk, dropped or damaged within."""
    value = copy.deepcopy(value)
    for _ in range(rng.randint(1, 3)):
        paths = list(nodes(value))
        if not paths:
            return value
        path = paths[rng.randint(len(paths))]
        parent, key = at(value, path[:-1]), path[-1]
        if rng.randint(4) == 0 and isinstance(parent, dict):
            del parent[key]
        elif (
            isinstance(parent[key], np.ndarray)
            and parent[key].dtype.kind == "f"
            and parent[key].size
            and rng.randint(2)
        ):
            bad = np.array([np.nan, np.inf, 1e300, -1, 0, 1e-16, 1e6], np.float64)
            with np.errstate(all="ignore"):
                parent[key].flat[rng.randint(parent[key].size)] = bad[rng.randint(len(bad))]
        else:
            parent[key] = JUNK[rng.randint(len(JUNK))]
    return value


def config_text(bench: Bench, rng: Random) -> None:
    name = CONFIGS[rng.randint(len(CONFIGS))]
    path = bench.folder / "m.yaml"
    text = bench.texts[name]
    path.write_bytes(
        damaged_bytes(text.encode(), rng) if rng.randint(4) == 0 else damaged_text(text, rng).encode()
    )
    check_config(load_cfg(path))


def _is_free(path: tuple[Any, ...]) -> bool:
    """Whether the last key of ``path`` may be another one: the name of a class, or of a head."""
    return bool(set(path[:-1]) & set(FREE_KEYS)) or (path[0] == "MODEL" and str(path[-1]).endswith("_HEAD"))


def config_key(bench: Bench, rng: Random) -> None:
    """A misspelt key must be refused, wherever it is."""
    cfg = copy.deepcopy(bench.configs[CONFIGS[rng.randint(len(CONFIGS))]])
    paths = [path for path in nodes(cfg) if isinstance(path[-1], str) and not _is_free(path)]
    path = paths[rng.randint(len(paths))]
    parent, key = at(cfg, path[:-1]), path[-1]
    place = rng.randint(len(key))
    items = list(parent.items())
    parent.clear()
    parent.update({key[:place] + "Q" + key[place + 1 :] if name == key else name: v for name, v in items})
    check_config(EasyDict(cfg))
    raise AssertionError(f"the misspelt key {'.'.join(map(str, path))} was accepted")


def config_value(bench: Bench, rng: Random) -> None:
    """A value of another kind: no other exception; NaN, inf and numbers beyond 64 bits are refused."""
    cfg = copy.deepcopy(bench.configs[CONFIGS[rng.randint(len(CONFIGS))]])
    paths = list(nodes(cfg))
    path = paths[rng.randint(len(paths))]
    old, new = at(cfg, path), JUNK[rng.randint(15)]
    at(cfg, path[:-1])[path[-1]] = new
    check_config(EasyDict(cfg))
    if isinstance(old, int | float) and not isinstance(old, bool):
        strange = isinstance(new, str | list | dict) or new == 2**70 or not np.isfinite(new or 0)
        assert not strange, f"{'.'.join(map(str, path))}: {new!r} instead of {old!r} was accepted"


def label(bench: Bench, rng: Random) -> None:
    path = bench.folder / "label.txt"
    text = "\n".join([CAR, WALKER, DONT_CARE, CAR + " 0.9"]) + "\n"
    path.write_bytes(
        damaged_bytes(text.encode(), rng) if rng.randint(4) == 0 else damaged_text(text, rng).encode()
    )
    found = read_labels(path)
    real = found["name"] != NO_CARE
    sizes, places = found["dimensions"][real], found["location"]
    assert np.isfinite(sizes).all() and (sizes >= 0.01).all() and (sizes <= 100).all(), "impossible box"
    assert np.isfinite(places).all() and (np.abs(places) <= 1e4).all(), "impossible place"
    assert not any("/" in name for name in found["name"]), "a path as a name"


def calibration(bench: Bench, rng: Random) -> None:
    path = bench.folder / "calib.txt"
    text = "\n".join(f"{key}: {' '.join(map(str, values))}" for key, values in CALIB.items()) + "\n"
    path.write_bytes(
        damaged_bytes(text.encode(), rng) if rng.randint(4) == 0 else damaged_text(text, rng).encode()
    )
    turn = Calibration.from_file(path).Tr_velo_to_cam[:, :3]
    assert np.abs(turn @ turn.T - np.eye(3)).max() < 0.05, "no rotation"
    moved = Calibration.from_file(path).rect_to_lidar(np.eye(3))
    assert np.isfinite(moved).all(), "a calibration that cannot be inverted"


def _other_kind(points: np.ndarray, rng: Random) -> tuple[bytes, bool]:
    """A point file of another kind; whether it must be refused."""
    out = io.BytesIO()
    way = rng.randint(7)
    if way == 0:
        np.save(out, points)
    elif way == 1:
        out.write(b"# .PCD v0.7\nFIELDS x y z intensity\n" + points.tobytes())
    elif way == 2:
        out.write(np.tile(points, (20, 1))[:, :3].tobytes())
    elif way == 3:
        ring = rng.randint(0, 32, (len(points) * 4, 1)).astype(np.float32)
        out.write(np.hstack([np.tile(points, (4, 1)), ring]).tobytes())
    elif way == 4:
        out.write(points.astype("<f8").tobytes())
    elif way == 5:
        out.write(points.astype(">f4").tobytes())
    else:
        out.write("\n".join(" ".join(f"{v:.3f}" for v in row) for row in points).encode())
    raw = out.getvalue()
    return raw[: len(raw) // 16 * 16], True


def points(bench: Bench, rng: Random) -> None:
    cloud = scene_points(rng.randint(1000))
    raw, must = _other_kind(cloud, rng) if rng.randint(3) else (damaged_bytes(cloud.tobytes(), rng), False)
    path = bench.folder / "points.bin"
    path.write_bytes(raw)
    found = check_frames(lambda index: raw, 1, 4, RANGE)
    if any(finding.serious for finding in found):
        raise DataError(found[0].text)
    read = read_bin(path, 4)
    assert np.isfinite(read).all() and (np.abs(read[:, :3]) <= 1e4).all(), "points that are none"
    assert not must, "a file of another kind was accepted"


def array(bench: Bench, rng: Random) -> None:
    out = io.BytesIO()
    np.save(out, rng.randint(0, 9, (4, 5)))
    path = bench.folder / "a.npy"
    path.write_bytes(damaged_bytes(out.getvalue(), rng))
    assert read_npy(path).nbytes <= path.stat().st_size


def infos(bench: Bench, rng: Random) -> None:
    if rng.randint(3) == 0:
        bench.path.write_bytes(damaged_bytes(pickle.dumps(bench.infos, rng.randint(6)), rng))
    else:
        bench.path.write_bytes(pickle.dumps(damaged_tree(bench.infos, rng)))
    dataset = KittiDataset(bench.kitti, ["Car", "Pedestrian"], training=True)
    refused = 0
    for index in range(len(dataset)):
        try:
            boxes = dataset.load_sample(index).get("gt_boxes", np.zeros((0, 7)))
        except PCDetFreezeError:
            refused += 1
            continue
        assert np.isfinite(boxes).all() and (np.abs(boxes) <= 1e4).all() and (boxes[:, 3:6] >= 0.01).all(), (
            "box"
        )
    dataset.ground_truth_annos()
    if refused:
        raise DataError("a frame was refused")


def database(bench: Bench, rng: Random) -> None:
    """gt_sampling on a damaged database: bad objects are left out, the sample stays plausible."""
    from pcdet_freeze.datasets.augmentor import DataAugmentor
    from pcdet_freeze.datasets.bad_data import BadFramePolicy

    root = bench.folder / "kitti"
    entries = damaged_tree(read_pickle(root / "kitti_dbinfos_train.pkl"), rng)
    write_pickle(bench.folder / "kitti" / "db.pkl", entries)
    cfg = {"NAME": "gt_sampling", "DB_INFO_PATH": ["db.pkl"], "SAMPLE_GROUPS": ["Car:3", "Pedestrian:3"],
           "NUM_POINT_FEATURES": 4}  # fmt: skip
    step = DataAugmentor([cfg], ["Car", "Pedestrian"], np.array(RANGE), root_path=root,
                         policy=BadFramePolicy(skip=True, limit=0.5))  # fmt: skip
    sample = {
        "points": scene_points(0),
        "gt_boxes": np.zeros((0, 7), np.float32),
        "gt_names": np.zeros(0, str),
    }
    found = step(sample, rng)
    assert np.isfinite(found["gt_boxes"]).all() and np.isfinite(found["points"]).all(), "pasted nonsense"
    assert (np.abs(found["gt_boxes"]) <= 1e4).all() and (np.abs(found["points"]) <= 3e4).all(), (
        "pasted far away"
    )


def checkpoint(bench: Bench, rng: Random) -> None:
    path, out = bench.folder / "a.pth", io.BytesIO()
    if rng.randint(2):
        torch.save(bench.state, out, _use_new_zipfile_serialization=bool(rng.randint(4)))
        path.write_bytes(damaged_bytes(out.getvalue(), rng))
    else:
        try:
            torch.save(damaged_tree(bench.state, rng), out)
        except (AttributeError, TypeError, OverflowError):
            return
        path.write_bytes(out.getvalue())
    state, trainer = load_checkpoint(path), toy_trainer()
    FreezeMetadata.of(state)
    load_model_state(trainer.model, state["model_state"], path)
    resume(trainer, state)
    assert 0 <= trainer.epoch < 2**63 and 0 <= trainer.iteration < 2**63


KINDS: dict[str, Callable[[Bench, Random], None]] = {
    kind.__name__: kind
    for kind in (config_text, config_key, config_value, label, calibration, points, array, infos, database,
                 checkpoint)
}  # fmt: skip


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in a block that takes longer."""

    def late(*_: object) -> None:
        raise TimeoutError(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass
class Report:
    """Cases by kind and verdict, and the faults."""

    verdicts: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")

    def add(self, kind: str, seed: int, verdict: str, seconds: float) -> None:
        self.verdicts[kind, "fault" if verdict not in ("refused", "accepted") else verdict] += 1
        self.slowest = max(self.slowest, (seconds, f"{kind} {seed}"))
        if verdict not in ("refused", "accepted"):
            self.faults.append(f"{kind} {seed}: {verdict}")

    def __str__(self) -> str:
        rows = [f"{'kind':14}{'refused':>9}{'accepted':>9}{'faults':>8}"]
        for kind in KINDS:
            counts = [self.verdicts[kind, verdict] for verdict in ("refused", "accepted", "fault")]
            rows.append(f"{kind:14}{counts[0]:9}{counts[1]:9}{counts[2]:8}")
        return "\n".join([*rows, f"slowest: {self.slowest[0]:.2f} s ({self.slowest[1]})", *self.faults])


def run_case(bench: Bench, kind: str, seed: int) -> str:
    """The verdict on one case."""
    rng = Random([sorted(KINDS).index(kind), seed])
    try:
        with limited(LIMIT):
            KINDS[kind](bench, rng)
    except PCDetFreezeError:
        return "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return "accepted"


def fuzz(cases: int, folder: Path, first: int = 0, kinds: tuple[str, ...] = ()) -> Report:
    """Run ``cases`` cases, spread evenly over the kinds, with the seeds from ``first`` on."""
    bench, report = Bench(folder), Report()
    names = kinds or tuple(KINDS)
    for number in range(cases):
        kind, seed = names[number % len(names)], first + number // len(names)
        begin = time.perf_counter()
        report.add(kind, seed, run_case(bench, kind, seed), time.perf_counter() - begin)
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--kinds", nargs="*", choices=list(KINDS), default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(args.cases, Path(folder), args.first, tuple(args.kinds))
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
