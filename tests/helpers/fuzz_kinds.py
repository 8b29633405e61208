"""The kinds of input that `fuzz.py` damages: each function damages one, reads it and judges what was read."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from easydict import EasyDict
from engine_toy import toy_trainer
from fuzz_damage import JUNK, Random, at, damaged_bytes, damaged_text, damaged_tree, nodes
from kitti_maker import CALIB, CAR, DONT_CARE, WALKER, make_kitti, scene_points

from pcdet_freeze.config import load_cfg, plain
from pcdet_freeze.config.find import packaged_configs
from pcdet_freeze.datasets.checks import check_frames
from pcdet_freeze.datasets.file_formats.files import read_bin, read_npy, read_pickle, write_pickle
from pcdet_freeze.datasets.kitti import KittiDataset, prepare_kitti
from pcdet_freeze.datasets.kitti.calibration import Calibration
from pcdet_freeze.datasets.kitti.labels import DONT_CARE as NO_CARE
from pcdet_freeze.datasets.kitti.labels import read_labels
from pcdet_freeze.engine.check_config import check_config
from pcdet_freeze.engine.checkpoint.resume import resume
from pcdet_freeze.engine.checkpoint.weights import load_model_state
from pcdet_freeze.engine.hooks.checkpoint import CheckpointHook
from pcdet_freeze.errors import DataError, PCDetFreezeError
from pcdet_freeze.freezing.verification.checkpoint_meta import FreezeMetadata
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint

CONFIGS = ("kitti_models/pointpillar.yaml", "synthetic_models/multi_task.yaml", "kitti_models/second.yaml")
RANGE = [0, -39.68, -3, 69.12, 39.68, 1]
FREE_KEYS = ("CLASS_MAP", "LABEL_MAP", "POINT_LABELS", "LOSS_WEIGHTS")


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
    from pcdet_freeze.datasets.reading.bad_data import BadFramePolicy

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
