"""What the reader of a page has: small data, checkpoints, an OpenPCDet; and configs with small settings.

A page names packaged configs. A file of the same name in the working directory takes precedence, so each of
them is written there: the packaged config, cut to a few metres, scenes and channels.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import nuscenes_maker
import torch
import yaml
from argoverse2_maker import make_log
from docs_blocks import ROOT, blocks_of
from docs_server import CommandServer
from kitti_maker import make_kitti
from once_maker import make_once
from pandaset_maker import make_pandaset
from semantic_kitti_maker import make_sequence
from standin_runs import STANDIN
from waymo_maker import make_waymo

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.config.find import config_names, packaged_configs
from pcdet_freeze.datasets import build_dataset
from pcdet_freeze.models import build_network

RANGES = {
    "synthetic": [-12.8, -12.8, -3.0, 12.8, 12.8, 1.0],
    "bench": [0, -10.24, -3, 20.48, 10.24, 1],
    "kitti": [0, -10.24, -3, 20.48, 10.24, 1],
    "pandaset": [-12.8, -12.8, -2.0, 12.8, 12.8, 4.0],
    "argoverse2": [-12.8, -12.8, -2.0, 12.8, 12.8, 3.0],
    "nuscenes": [-6.4, -6.4, -5, 6.4, 6.4, 3],
    "waymo": [-6.4, -6.4, -2, 6.4, 6.4, 4],
    "once": [-4.8, -4.8, -5, 4.8, 4.8, 3],
    "semantic": [-12.8, -12.8, -3.0, 12.8, 12.8, 2.0],
    "mixed": [0, -12.8, -2.0, 25.6, 12.8, 4.0],
    "custom": [-12.8, -12.8, -3.0, 12.8, 12.8, 3.0],
}
"""folder of a config, up to its first _ -> POINT_CLOUD_RANGE in metres"""
SCENES = {
    "NUM_SCENES": {"train": 4, "test": 2}, "MIN_CARS": 1, "KEEP_EMPTY_FRAMES": True,
    "SENSOR": {"BEAMS": "VLP-16", "AZIMUTH_STEP": 0.72},
}  # fmt: skip


def small(name: str) -> dict[str, Any]:
    """The packaged config ``name`` with keys that make it small."""
    path = packaged_configs() / name
    cfg, kind = cfg_from_yaml_file(path), name.partition("/")[0].partition("_")[0]
    data: dict[str, Any] = {"POINT_CLOUD_RANGE": RANGES[kind]}
    if kind == "synthetic":
        data |= SCENES
    if kind == "bench":
        data["RANDOM_SCENES"] = {"POINTS": 2000, "BOXES": 4}
    if kind == "nuscenes":
        data["VERSION"] = nuscenes_maker.VERSION
    if kind == "pandaset":
        data["REPEAT"] = 2
    if kind == "argoverse2":
        data |= {"SWEEPS": {"train": ["log/1000"], "test": ["log/1000"]}, "REPEAT": 2}
    optimization = {"REPORT_FRAMES": 0}
    if kind != "synthetic":  # pages name checkpoints of its epochs
        optimization |= {"NUM_EPOCHS": 1, "BATCH_SIZE_PER_GPU": 8 if kind == "nuscenes" else 2}
    return {
        "_BASE_CONFIG_": str(path),
        "DATA_CONFIG": data,
        "MODEL": _few_channels(cfg.MODEL),
        "OPTIMIZATION": optimization,
    }


def _few_channels(model: Mapping[str, Any]) -> dict[str, Any]:
    keys = {"LAYER_NUMS": 1, "NUM_FILTERS": 8, "NUM_UPSAMPLE_FILTERS": 8}
    backbone = model["BACKBONE_2D"]
    changed: dict[str, Any] = {
        "BACKBONE_2D": {key: [value] * len(backbone[key]) for key, value in keys.items() if key in backbone}
    }
    if "NMS_CONFIG" in model.get("POST_PROCESSING", {}):
        few = {"NMS_PRE_MAXSIZE": 64, "NMS_POST_MAXSIZE": 16}
        changed["POST_PROCESSING"] = {"SCORE_THRESH": 0.3, "NMS_CONFIG": few}
    if "SHARED_CONV_NUM_FILTER" in (model.get("DENSE_HEAD") or {}):
        changed["DENSE_HEAD"] = {"SHARED_CONV_NUM_FILTER": 8}
    if "SEGMENT_HEAD" in model:
        changed["SEGMENT_HEAD"] = {"POINT_FILTERS": [8, 8], "MAX_POINTS": 256}
    if "cyclist_head" in model.get("DENSE_HEADS", {}):
        changed["DENSE_HEADS"] = {"cyclist_head": {"SHARED_CONV_CHANNEL": 8}}
    return changed


class World:
    """The working directory of the reader of a page."""

    def __init__(self, page: Path, folder: Path, server: CommandServer) -> None:
        """Each packaged config of a model that the page names becomes small."""
        self.page, self.folder, self.server = page.relative_to(ROOT).as_posix(), folder, server
        self.shorter: dict[str, str] = {}
        """last checkpoint of a run, as a page names it -> the one of the small config, which has one epoch"""
        text = re.sub(r"_BASE_CONFIG_: cfgs/\S+", "", page.read_text())
        for name in config_names():
            if name in text and not name.startswith("dataset_configs"):
                self.add_config(name)
        for add in PAGES.get(self.page, ()):
            add(self)

    def add_config(self, name: str) -> None:
        """Write a small config."""
        made, path = small(name), self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(made, sort_keys=False))
        if epochs := made["OPTIMIZATION"].get("NUM_EPOCHS"):
            real = cfg_from_yaml_file(packaged_configs() / name).OPTIMIZATION.NUM_EPOCHS
            self.add_shorter(name.removesuffix(".yaml"), real, epochs)

    def add_shorter(self, run: str, real: int, epochs: int) -> None:
        """A run ends after ``epochs`` in place of ``real`` ones."""
        ckpt = f"output/{run}/default/ckpt/checkpoint_epoch_"
        self.shorter[f"{ckpt}{real}.pth"] = f"{ckpt}{epochs}.pth"

    def run(self, text: str) -> str:
        """Run lines of bash; returns what they printed."""
        for real, short in self.shorter.items():
            text = text.replace(real, short)
        given = {
            "STANDIN_ROOT": str(self.folder),
            "STANDIN_VERSION": "8caccce",
            "HOME": str(self.folder),
            "WANDB_MODE": "offline",
        }
        done = subprocess.run(
            ["bash", "-c", text], cwd=self.folder, env=self.server.environment(**given), check=False,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=600,
        )  # fmt: skip
        return done.stdout

    def add_checkpoint(self, config: str, file: str, start: str = "") -> None:
        """Write the weights of a new model, of ``start`` where names and shapes fit."""
        cfg = cfg_from_yaml_file(self.folder / config)
        if "DATA_PATH" in cfg.DATA_CONFIG:
            cfg.DATA_CONFIG.DATA_PATH = str(self.folder / cfg.DATA_CONFIG.DATA_PATH)
        dataset = build_dataset(cfg.DATA_CONFIG, cfg.CLASS_NAMES, training=False)
        state = build_network(cfg.MODEL, len(cfg.CLASS_NAMES), dataset).state_dict()
        known = torch.load(self.folder / start)["model_state"] if start else {}
        state |= {name: value for name, value in known.items() if name in state}
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        torch.save({"model_state": state, "epoch": 1, "it": 1}, self.folder / file)


def _stages(*files: str) -> Callable[[World], None]:
    """Checkpoints of the three stages on simulated scenes, under these names."""

    def add(world: World) -> None:
        before = ""
        for name, file in zip(("stage1_detect", "stage2_segment", "stage3_lane"), files, strict=False):
            world.add_config(f"synthetic_models/{name}.yaml")
            world.add_checkpoint(f"synthetic_models/{name}.yaml", file, before)
            before = file

    return add


def _kitti(world: World) -> None:
    make_kitti(world.folder / "data/kitti")
    shutil.copy(world.folder / "data/kitti/training/velodyne/000000.bin", world.folder / "000008.bin")


def _no_images(world: World) -> None:
    for image in (world.folder / "data/kitti/training/image_2").iterdir():
        image.unlink()


def _kitti_infos(world: World) -> None:
    """KITTI's infos, and a detector that was trained on it."""
    world.run("pcdet-freeze prepare kitti --cfg_file dataset_configs/kitti_dataset.yaml")
    world.add_config("kitti_models/pointpillar.yaml")
    world.add_checkpoint("kitti_models/pointpillar.yaml", "checkpoint_epoch_80.pth")


def _kitti_elsewhere(world: World) -> None:
    make_kitti(world.folder / "kitti")
    shutil.copy(world.folder / "kitti/ImageSets/train.txt", world.folder / "kitti/ImageSets/trainval.txt")


def _small_nuscenes(folder: Path) -> None:
    """Five samples of each scene."""
    scenes = nuscenes_maker.SCENES[:]
    nuscenes_maker.SCENES[:] = [(name, 5, *others) for name, _, *others in scenes]
    try:
        nuscenes_maker.make_nuscenes(folder)
    finally:
        nuscenes_maker.SCENES[:] = scenes


def _other_sets(world: World) -> None:
    made: dict[str, Callable[[Path], Any]] = {
        "nuscenes": _small_nuscenes, "waymo": make_waymo, "once": make_once, "pandaset": make_pandaset,
    }  # fmt: skip
    for name, make in made.items():
        if f"data/{name}" in (ROOT / world.page).read_text() or "mixed" in world.page:
            make(world.folder / "data" / name)


def _pandaset_stages(world: World) -> None:
    for name in ("stage1_detect", "stage2_segment", "stage3_lane"):
        world.add_config(f"pandaset_models/{name}.yaml")


def _semantic_kitti(world: World) -> None:
    for number in range(11):
        make_sequence(world.folder / "data/semantic_kitti", number, sweeps=1)


def _nuscenes_results(world: World) -> None:
    (world.folder / "final_result/data").mkdir(parents=True)
    (world.folder / "final_result/data/token.json").write_text("[]")


def _two_runs(world: World) -> None:
    """Runs of two tags, and of two stages."""
    name = "synthetic_models/pointpillar.yaml"
    world.add_config(name)
    (world.folder / "synthetic_models/stage1.yaml").write_text(f"_BASE_CONFIG_: {name}\n")
    (world.folder / "synthetic_models/stage2.yaml").write_text(f"_BASE_CONFIG_: {name}\n")
    for run in ("pointpillar.yaml --extra_tag a", "pointpillar.yaml --extra_tag b", "stage1.yaml",
                "stage2.yaml"):  # fmt: skip
        few = "--max_iters 1 --num_epochs_to_eval 0"
        world.run(f"pcdet-freeze train {few} --cfg_file synthetic_models/{run}")


def _openpcdet(world: World) -> None:
    """The stand-in for an OpenPCDet, whose root is the working directory, and detectors of it."""
    for name in ("pcdet", "tools", "data"):
        shutil.copytree(STANDIN / name, world.folder / name, dirs_exist_ok=True)
    tools = world.folder / "tools"
    shutil.copytree(STANDIN / "tools_8caccce/train_utils", tools / "train_utils", dirs_exist_ok=True)
    segment = next(b for b in blocks_of(ROOT / "docs/openpcdet_tasks.md") if b.file == "my_head.py")
    (world.folder / "my_head.py").write_text(segment.text)
    (world.folder / "data/toy/point_labels").mkdir()
    for index in range(8):
        labels = np.arange(40 + index % 4) >= 20
        np.save(world.folder / f"data/toy/point_labels/{index}.npy", labels)
    lists = {
        "kitti_models/pv_rcnn": ("toy_models/pv_rcnn", "[vfe, backbone_3d, backbone_2d]"),
        "your_models/your": ("toy_models/pv_rcnn", "[vfe, backbone_3d, backbone_2d, dense_head]"),
        "kitti_models/pointpillar_segment": ("scan_models/pointpillar", "[vfe, backbone_2d, dense_head]"),
    }
    for name, (kind, entries) in lists.items():
        (tools / f"cfgs/{name}.yaml").parent.mkdir(exist_ok=True)
        text = (tools / f"cfgs/{kind}.yaml").read_text()
        text = text.replace("MODEL:\n", f"MODEL:\n    NOT_TRAIN_IN_MULTI_TASK: {entries}\n", 1)
        (tools / f"cfgs/{name}.yaml").write_text(text)
        world.add_shorter(name, 80, 2)
    made = {"toy_models/pv_rcnn": "pv_rcnn.pth det.pth", "scan_models/pointpillar": "detection.pth"}
    for kind, files in made.items():
        world.run(f"cd tools && python train.py --cfg_file cfgs/{kind}.yaml --epochs 1")
        for file in files.split():
            ckpt = world.folder / f"output/{kind}/default/ckpt/checkpoint_epoch_1.pth"
            shutil.copy(ckpt, world.folder / file)


STAGE1 = "output/synthetic_models/stage1_detect/default/ckpt/checkpoint_epoch_5.pth"


HEADS = _stages("det.pth", "seg.pth", "lane.pth")
PAGES: dict[str, tuple[Callable[[World], Any], ...]] = {
    "README.md": (_kitti, _openpcdet, HEADS),
    "docs/benchmarks.md": (_kitti_elsewhere, _stages(STAGE1)),
    "docs/check_data.md": (_kitti, _kitti_infos),
    "docs/datasets.md": (_kitti_elsewhere,),
    "docs/datasets/argoverse2.md": (lambda world: make_log(world.folder / "data/av2/val"),),
    "docs/datasets/nuscenes.md": (_other_sets, _nuscenes_results),
    "docs/datasets/once.md": (_other_sets,),
    "docs/datasets/pandaset.md": (_other_sets, _pandaset_stages),
    "docs/datasets/semantic_kitti.md": (_kitti, _kitti_infos, _semantic_kitti),
    "docs/datasets/waymo.md": (_other_sets,),
    "docs/export.md": (_stages("stage1.pth", "stage2.pth", "stage3.pth"),),
    "docs/from_a_fork.md": (_openpcdet,),
    "docs/mixing.md": (_kitti, _other_sets, _semantic_kitti),
    "docs/multi_task.md": (HEADS,),
    "docs/openpcdet.md": (_openpcdet,),
    "docs/openpcdet_tasks.md": (_openpcdet,),
    "docs/pictures.md": (_kitti, _kitti_infos, _stages("stage1.pth", "stage2.pth")),
    "docs/recipes/freeze_first_stage.md": (_openpcdet,),
    "docs/report.md": (_two_runs,),
    "docs/troubleshooting.md": (
        _kitti,
        _kitti_infos,
        lambda world: shutil.copytree(STANDIN, world.folder / "OpenPCDet"),
    ),
    "docs/your_data.md": (_kitti, _no_images),
}
"""page -> what its reader has besides configs"""
