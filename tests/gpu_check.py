"""The checks of ``tools/gpu_check.sh``: each is a command, with a share of the time; one table, one JSON."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NEEDED = {
    "torch": "torch",
    "numpy": "numpy",
    "yaml": "pyyaml",
    "numba": "numba",
    "tqdm": "tqdm",
    "PIL": "pillow",
}
"""module -> distribution, without which nothing runs"""
OPTIONAL = {
    "easydict": "easydict",
    "tensorboardX": "tensorboardX",
    "spconv": "spconv",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
}
TASKS = "cfgs/synthetic_models/multi_task.yaml"
SETS = [
    "DATA_CONFIG.NUM_SCENES.train", "40", "DATA_CONFIG.NUM_SCENES.test", "4", "MODEL.NOT_TRAIN_IN_MULTI_TASK",
    "vfe,backbone_2d.blocks", "MODEL.FREEZE.ALLOW_RANDOM", "True",
]  # fmt: skip


@dataclass(frozen=True)
class Check:
    """A command that must exit with 0."""

    name: str
    command: Sequence[str]
    limit: float
    """seconds"""
    rows: Path | None = None
    """JSON that the command writes"""


@dataclass
class Result:
    """What became of a check."""

    name: str
    outcome: str
    """passed, failed, out of time, not run"""
    seconds: float = 0.0
    detail: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)


def checks(device: str, gpus: int, out: Path) -> Iterator[Check]:
    """All checks, the most telling first."""
    python = sys.executable
    if importlib.util.find_spec("pytest") and importlib.util.find_spec("hypothesis"):
        yield Check(
            "tests on the GPU", [python, "-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider"], 150
        )
    for grid, more in (("half of KITTI's grid", ()), ("KITTI's grid", ("--grid", "full"))):
        if more and not _knows_grid():
            more = ("--set", "DATA_CONFIG.DATA_PROCESSOR.2.VOXEL_SIZE", "[0.16, 0.16, 4]")
        rows = out / f"bench_{len(more)}.json"
        variants = "bn_only,requires_grad,exact,bf16_prefix,bf16,none_bf16"
        command = [
            python,
            "-m",
            "pcdet_freeze",
            "bench",
            "--device",
            device,
            "--rounds",
            "5",
            "--batch_size",
            "2",
        ]
        command += ["--variants", variants, "--json", str(rows), *more]
        if device != "cpu" or not more:
            yield Check(f"bench, {grid}", command, 90, rows)
    for mode in ((), ("--use_amp",)):
        for iterations in ("6", "12"):
            words = _train(out, f"one{''.join(mode)}", iterations, 2, device, *mode)
            name = f"{'' if iterations == '6' else 'resumed '}training {' '.join(mode)}".strip()
            yield Check(name, [python, "tools/train.py", *words], 60)
    if device != "cpu":
        words = _train(out, "nccl", "6", 2 * gpus, None, "--launcher", "pytorch", "--sync_bn")
        launch = [python, "-m", "torch.distributed.run", f"--nproc_per_node={gpus}", "tools/train.py"]
        yield Check(f"training under NCCL, {gpus} processes", [*launch, *words], 60)


def _train(out: Path, tag: str, iterations: str, batch: int, device: str | None, *more: str) -> list[str]:
    where = [] if device is None else ["--device", device]
    words = ["--cfg_file", TASKS, "--output_dir", str(out), "--extra_tag", tag, "--max_iters", iterations]
    words += ["--batch_size", str(batch), "--workers", "2", "--fix_random_seed", *where, *more]
    return [*words, "--set", *SETS]


def _knows_grid() -> bool:
    return '"--grid"' in (ROOT / "pcdet_freeze" / "cli" / "bench.py").read_text()


def plugin_checks() -> Iterator[Check]:
    """Trainings in OpenPCDet, where $OPENPCDET, $CFG, $CKPT and $LIST are set; each takes an epoch."""
    if "OPENPCDET" not in os.environ:
        return
    cfg, weights, names = (os.environ[key] for key in ("CFG", "CKPT", "LIST"))
    for mode in ((), ("--use_amp",)):
        words = ["train.py", "--cfg_file", cfg, "--pretrained_model", weights, "--epochs", "1", *mode]
        words += ["--extra_tag", f"gpu_check{''.join(mode)}", "--set", "MODEL.NOT_TRAIN_IN_MULTI_TASK", names]
        yield Check(
            f"plugin {' '.join(mode)}".strip(), [sys.executable, "-m", "pcdet_freeze.openpcdet", *words], 3600
        )


def run(check: Check, until: float, folder: Path) -> Result:
    """Run ``check`` for its limit, but not beyond the time ``until``."""
    left = min(check.limit, until - time.monotonic())
    if left < 5:
        return Result(check.name, "not run", detail="no time left")
    begin = time.monotonic()
    try:
        done = subprocess.run(check.command, cwd=folder, timeout=left, capture_output=True, text=True)
        last = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()][-1:]
        outcome, detail = ("passed" if done.returncode == 0 else "failed"), " ".join(last)
        if done.returncode:
            print(f"== {check.name}\n{done.stdout[-2000:]}{done.stderr[-2000:]}", file=sys.stderr)
    except subprocess.TimeoutExpired:
        outcome, detail = "out of time", f"after {left:.0f} s"
    rows = json.loads(check.rows.read_text()) if check.rows and check.rows.is_file() else []
    return Result(check.name, outcome, time.monotonic() - begin, detail[:160], rows)


def environment() -> dict[str, Any]:
    """Versions and card, for the record."""
    import numpy
    import torch

    card = torch.cuda.get_device_name(0) if torch.cuda.is_available() else platform.processor() or "cpu"
    absent = [name for name in OPTIONAL if importlib.util.find_spec(name) is None]
    return {
        "date": date.today().isoformat(),
        "card": card,
        "gpus": torch.cuda.device_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numpy": numpy.__version__,
        "absent": absent,
    }


def install(wheels: Path | None, out: Path) -> None:
    """Take missing packages from ``wheels`` into a folder of this run; exit where a needed one is missing."""
    lacking = {
        module: name
        for module, name in {**NEEDED, **OPTIONAL}.items()
        if not importlib.util.find_spec(module)
    }
    if wheels is not None and lacking:
        site = out / "site"
        for name in lacking.values():
            words = [
                "install",
                "--quiet",
                "--no-index",
                "--find-links",
                str(wheels),
                "--target",
                str(site),
                name,
            ]
            subprocess.run([sys.executable, "-m", "pip", *words], check=False, stderr=subprocess.DEVNULL)
        sys.path.insert(0, str(site))
        importlib.invalidate_caches()
        os.environ["PYTHONPATH"] = os.pathsep.join([os.environ.get("PYTHONPATH", str(ROOT)), str(site)])
    missing = [name for module, name in NEEDED.items() if not importlib.util.find_spec(module)]
    if missing:
        sys.exit(
            f"gpu_check.sh needs {', '.join(missing)}, not found here. Install them, or give --wheels DIR"
        )


def show(results: Sequence[Result]) -> None:
    """Print the table, and the times of the variants."""
    width = max(len(result.name) for result in results)
    for result in results:
        print(f"{result.name:{width}}  {result.outcome:11}  {result.seconds:6.1f} s  {result.detail}")
        for row in result.rows:
            if row.get("seconds"):
                print(f"{'':{width}}    {row['variant']:14} {row['seconds']:.4f} s  {row['time_ratio']:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=Path("gpu_check.json"))
    parser.add_argument("--wheels", type=Path, help="folder with wheels of packages that may be missing")
    parser.add_argument(
        "--seconds",
        type=float,
        default=480,
        help="limit for all checks except those of the plugin; default 480",
    )
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()
    until = time.monotonic() + args.seconds
    with tempfile.TemporaryDirectory() as folder:
        install(args.wheels, Path(folder))
        found = environment()
        if args.device != "cpu" and not found["gpus"]:
            print(
                "gpu_check.sh needs a GPU and the CUDA build of torch, but torch finds none", file=sys.stderr
            )
            return 2
        results = [run(check, until, ROOT) for check in checks(args.device, found["gpus"], Path(folder))]
        for check in plugin_checks():
            results.append(
                run(check, time.monotonic() + check.limit, Path(os.environ["OPENPCDET"]) / "tools")
            )
    print(json.dumps(found))
    show(results)
    args.json.write_text(
        json.dumps({**found, "checks": [asdict(result) for result in results]}, indent=1) + "\n"
    )
    return int(any(result.outcome != "passed" for result in results))


if __name__ == "__main__":
    sys.exit(main())
