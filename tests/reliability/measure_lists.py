"""Train with lists of Waymo's size, and measure start and memory: the figures of docs/scaling.md.

    python tests/reliability/measure_lists.py                  packed lists: the four bars
    python tests/reliability/measure_lists.py --in_memory      the same with lists in each process
    python tests/reliability/measure_lists.py --batches 40     are the batches of both equal to the bit

Writes synthetic lists of 158,000 frames and 500,000 database objects (1.2 GB on disk with the packed ones,
deleted at the end) whose frames share 50 small point files. A toy PointPillars is trained; exit code 1 where
a bar is missed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers"), str(ROOT / "tests" / "reliability")]

import numpy as np  # noqa: E402
from real_ranks import children, free_port  # noqa: E402
from waymo_maker import TAG, annos, cloud, info  # noqa: E402

from pcdet_freeze.engine.hooks.base import Hook  # noqa: E402
from pcdet_freeze.engine.trainer import Trainer  # noqa: E402

CFG = str(ROOT / "cfgs/waymo_models/pointpillar_1x.yaml")
SEGMENT, POINT_FILES, OBJECT_FILES = 198, 50, 100
FIRST_S, RANK_MB, WORKER_MB = 15, 1000, 10
"""the bars"""
WARM = 20
"""iterations before the memory of a worker is read first"""
CLASSES = {"Vehicle": 0.6, "Pedestrian": 0.35, "Cyclist": 0.05}
MODEL = {
    "DATA_CONFIG.POINT_CLOUD_RANGE": "[-5.12, -5.12, -2, 5.12, 5.12, 4]",
    "MODEL.VFE.NUM_FILTERS": "[8]",
    "MODEL.MAP_TO_BEV.NUM_BEV_FEATURES": "8",
    "MODEL.BACKBONE_2D": "{NAME: BaseBEVBackbone, LAYER_NUMS: [1], LAYER_STRIDES: [1], NUM_FILTERS: [8], "
                         "UPSAMPLE_STRIDES: [1], NUM_UPSAMPLE_FILTERS: [8]}",
    "DATA_CONFIG.SAMPLED_INTERVAL": "{train: 1, test: 1}",
}  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=4))


def make(root: Path, frames: int, objects: int) -> None:
    """Lists of segments, infos of 198 frames each, the database's info file, and the shared files."""
    names = [f"segment-{number:05d}_with_camera_labels" for number in range(-(-frames // SEGMENT))]
    (root / "ImageSets").mkdir(parents=True)
    for split, listed in (("train", names), ("val", names[:1])):
        (root / "ImageSets" / f"{split}.txt").write_text("".join(f"{name}.tfrecord\n" for name in listed))
    shared = root / TAG / "shared"
    shared.mkdir(parents=True)
    for number in range(POINT_FILES):
        np.save(shared / f"{number:04d}.npy", cloud(number))
    labels = {key: np.concatenate([value, value]) for key, value in annos().items()}
    for place, name in enumerate(names):
        infos = []
        for number in range(min(SEGMENT, frames - place * SEGMENT)):
            frame = info(name, number)
            frame["point_cloud"].update(lidar_sequence="shared", sample_idx=number % POINT_FILES)
            frame["annos"] = {
                key: value + 0 if value.dtype.kind == "f" else value for key, value in labels.items()
            }
            infos.append(frame)
        write(root / TAG / name / f"{name}.pkl", infos)
    for number in range(OBJECT_FILES):
        points = np.random.RandomState(number).uniform(-0.3, 0.3, (20, 5)).astype(np.float32)
        path = root / "objects" / f"{number}.bin"
        path.parent.mkdir(exist_ok=True)
        points.tofile(path)
    rng = np.random.RandomState(0)
    database: dict[str, list[Any]] = {}
    for name, share in CLASSES.items():
        count = round(objects * share)
        boxes = np.concatenate(
            [rng.uniform(-4, 4, (count, 2)), np.tile([0.5, 0.6, 0.6, 1.0, 0, 0.1, 0], (count, 1))], 1
        )
        database[name] = [
            {"name": name, "path": f"objects/{k % OBJECT_FILES}.bin", "sequence_name": names[k % len(names)],
             "sample_idx": k % SEGMENT, "gt_idx": k % 40, "box3d_lidar": boxes[k].copy(),
             "num_points_in_gt": 20, "difficulty": np.int64(k % 2)}
            for k in range(count)
        ]  # fmt: skip
    write(root / f"{TAG}_waymo_dbinfos_train_sampled_1.pkl", database)


def kilobytes(process: int | str, name: str, file: str = "status") -> int:
    for line in Path(f"/proc/{process}/{file}").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    return 0


def private_mb(process: int) -> float:
    """Memory that no other process shares."""
    return sum(kilobytes(process, f"Private_{kind}", "smaps_rollup") for kind in ("Clean", "Dirty")) / 1024


class Figures(Hook):
    """Reads time and memory in an iteration, and writes them at the end."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}
        self.workers: list[list[tuple[float, float]]] = []

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration == 1:
            self.found["first_s"] = time.time() - float(os.environ["BEGIN"])
        if trainer.iteration == 1 or trainer.iteration % WARM == 0:
            self.found["peak_mb"] = kilobytes("self", "VmHWM") / 1024
            self.found["rank_private_mb"] = private_mb(os.getpid())
            workers = [child for child in children(os.getpid()) if kilobytes(child, "VmRSS")]
            self.workers.append([(private_mb(w), kilobytes(w, "VmRSS") / 1024) for w in workers])

    def after_train(self, trainer: Trainer) -> None:
        first, last = self.workers[1], self.workers[-1]
        self.found["workers"] = [
            {"private_mb": a[0], "grown_mb": b[0] - a[0], "resident_grown_mb": b[1] - a[1]}
            for a, b in zip(first, last, strict=True)
        ]
        Path(os.environ["FIGURES"]).write_text(json.dumps(self.found))


def train(root: Path, iterations: int, workers: int) -> None:
    """One rank of a training."""
    import torch

    import pcdet_freeze
    from pcdet_freeze.datasets.packed import opening

    torch.set_num_threads(1)
    if os.environ.get("IN_MEMORY"):
        opening.PACK_FROM = 2**60
    words = [word for pair in MODEL.items() for word in pair]
    words += ["DATA_CONFIG.DATA_PATH", str(root), "HOOK", "[{NAME: measure_lists.Figures}]"]
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    pcdet_freeze.train(
        CFG, words, output_dir=os.environ["OUTPUT"], max_iters=iterations, batch_size=2 * ranks,
        workers=workers, device="cpu", num_epochs_to_eval=0, fix_random_seed=True,
        launcher="pytorch" if ranks > 1 else "none",
    )  # fmt: skip


def run(root: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Figures of each rank of a training."""
    port, started, files = free_port(), [], []
    shutil.rmtree(root / "output", ignore_errors=True)
    for rank in range(args.ranks):
        files.append(root / f"figures_{rank}.json")
        env = {
            **os.environ,
            "BEGIN": str(time.time()),
            "OUTPUT": str(root / "output"),
            "FIGURES": str(files[-1]),
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "IN_MEMORY": "1" if args.in_memory else "",
            "MASTER_PORT": str(port),
            "MASTER_ADDR": "127.0.0.1",
        }
        if args.ranks > 1:
            env |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(args.ranks)}
        words = ["--rank_of", str(root), "--iterations", str(args.iterations), "--workers", str(args.workers)]
        started.append(
            subprocess.Popen([sys.executable, __file__, *words], env=env, stdout=subprocess.DEVNULL)
        )
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(f"the training ended with {codes}")
    return [json.loads(file.read_text()) for file in files]


def bars(found: list[dict[str, Any]], again: str) -> Iterator[tuple[str, bool]]:
    """What was measured, and whether it is within the bars."""
    for rank, figures in enumerate(found):
        yield (
            f"{again}, rank {rank}: first iteration after {figures['first_s']:.1f} s",
            figures["first_s"] <= FIRST_S,
        )
        peak, own = figures["peak_mb"], figures["rank_private_mb"]
        yield f"{again}, rank {rank}: {peak:.0f} MB at its peak, {own:.0f} MB of its own", peak <= RANK_MB
        for number, worker in enumerate(figures["workers"]):
            yield (
                f"{again}, rank {rank}, worker {number}: {worker['private_mb']:.0f} MB of its own, grown by "
                f"{worker['grown_mb']:.1f} MB (resident: {worker['resident_grown_mb']:.1f} MB)",
                worker["grown_mb"] <= WORKER_MB,
            )


def digests(root: Path, batches: int, in_memory: bool) -> list[str]:
    """A checksum of each of the first batches of an epoch."""
    from pcdet_freeze.config import cfg_from_yaml_file
    from pcdet_freeze.config.cfg import cfg_from_list
    from pcdet_freeze.datasets import build_dataloader
    from pcdet_freeze.datasets.packed import opening

    opening.PACK_FROM = 2**60 if in_memory else 0
    cfg = cfg_from_yaml_file(CFG)
    words = [word for pair in MODEL.items() for word in pair if pair[0].startswith("DATA")]
    cfg_from_list([*words, "DATA_CONFIG.DATA_PATH", str(root)], cfg)
    _, loader, _ = build_dataloader(cfg.DATA_CONFIG, cfg.CLASS_NAMES, 2, training=True, seed=1)
    found = []
    for number, batch in enumerate(loader):
        if number == batches:
            break
        text = {
            key: value.tobytes() if isinstance(value, np.ndarray) else repr(value)
            for key, value in batch.items()
        }
        found.append(hashlib.sha256(repr(sorted(text.items())).encode()).hexdigest())
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--frames", type=int, default=158_000)
    parser.add_argument("--objects", type=int, default=500_000)
    parser.add_argument("--iterations", type=int, default=400 + WARM)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--in_memory", action="store_true", help="keep the lists in each process")
    parser.add_argument("--batches", type=int, default=0, help="only compare so many batches of both")
    parser.add_argument(
        "--folder", type=Path, help="lists that an earlier run made here are used again, and stay"
    )
    parser.add_argument("--rank_of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.rank_of is not None:
        train(args.rank_of, args.iterations, args.workers)
        return 0
    with tempfile.TemporaryDirectory(prefix="lists-") as temporary:
        root = args.folder or Path(temporary)
        if not (root / "ImageSets").is_dir():
            begin = time.time()
            make(root, args.frames, args.objects)
            print(f"lists made in {time.time() - begin:.0f} s", flush=True)
        return measure(root, args)


def measure(root: Path, args: argparse.Namespace) -> int:
    if args.batches:
        packed, listed = (digests(root, args.batches, in_memory) for in_memory in (False, True))
        print(
            f"{sum(a == b for a, b in zip(packed, listed, strict=True))} of {args.batches} batches are equal"
        )
        return int(packed != listed)
    missed = 0
    for again in ("first start",) if args.in_memory else ("first start", "next start"):
        for text, good in bars(run(root, args), again):
            counts = again == "next start" or args.in_memory
            missed += counts and not good
            print(("ok  " if good else "FAIL") if counts else "    ", text, flush=True)
    return int(missed > 0)


if __name__ == "__main__":
    sys.exit(main())
