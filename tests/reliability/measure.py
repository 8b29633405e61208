"""Break trainings on purpose, many times, and count: the figures of docs/reliability.md.

    python tests/reliability/measure.py resume    do 104 broken runs end with the bits of unbroken ones
    python tests/reliability/measure.py saves     kill -9 while checkpoints are written: is one unreadable
    python tests/reliability/measure.py restarts  a rank is killed under torchrun --max-restarts
    python tests/reliability/measure.py memory    growth of the resident memory per 1,000 iterations

Toy trainings in forked processes, but for `memory`, which trains a small PointPillars. Exit code 1 where a
run is not survived.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "helpers")]

import torch  # noqa: E402
from broken_runs import EPOCHS, Case, Signals, ended, finish, start  # noqa: E402
from engine_toy import assert_same_state  # noqa: E402
from real_ranks import children, final_weights, processes, start_ranks, start_torchrun  # noqa: E402

from pcdet_freeze.engine.hooks.base import Hook  # noqa: E402
from pcdet_freeze.engine.trainer import Trainer  # noqa: E402
from pcdet_freeze.errors import CheckpointError  # noqa: E402
from pcdet_freeze.utils.untrusted_files.safe_torch_load import load_checkpoint  # noqa: E402

EDGE = EPOCHS // 2
"""the schedule unfreezes at the end of this epoch"""


def differs(found: Any, wanted: Any) -> bool:
    try:
        assert_same_state(found, wanted)
    except AssertionError:
        return True
    return False


def breaks(case: Case, number: int) -> list[tuple[int, int]]:
    """(signal, iteration) of ``number`` broken runs; those around the edge of the schedule come first."""
    edge = case.iterations * EDGE // EPOCHS
    iterations = [edge - 1, edge, edge + 1, 1, case.iterations - 1]
    iterations += random.sample(range(2, case.iterations), min(number, case.iterations - 2))
    numbers = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
    return [(numbers[i % 3], iterations[i % len(iterations)]) for i in range(number)]


def resume(out: Path, tries: int) -> Iterator[tuple[str, bool]]:
    """Each broken run is started again; the state at its end is compared with that of an unbroken run."""
    cases = [Case(*words) for words in product(("list", "schedule"), (0, 2), (1, 2))]
    for place, case in enumerate(cases):
        wanted = finish(out / f"unbroken_{place}", case)
        for number, (sent, iteration) in enumerate(breaks(case, -(-tries // len(cases)))):
            folder = out / f"{place}_{number}"
            codes = break_off(folder, case, sent, iteration)
            fault = "" if broken_by(sent, codes) else f"; exit codes {codes}"
            fault += "; other weights" if differs(finish(folder, case), wanted) else ""
            yield f"{case}, {signal.Signals(sent).name} in iteration {iteration}{fault}", not fault


def break_off(folder: Path, case: Case, sent: int, iteration: int) -> list[int | None]:
    """Exit codes of a training in which all ranks get SIGKILL in an iteration, or one gets another signal."""

    def hooks(rank: int) -> list[Hook]:
        return [Signals(sent, iteration)] if sent == signal.SIGKILL or rank == case.ranks - 1 else []

    return ended(start(folder, case, hooks))


def broken_by(sent: int, codes: list[int | None]) -> bool:
    """Whether the signal has ended a training; a rank may notice the end of another before its own."""
    return -sent in codes if sent == signal.SIGKILL else codes == [128 + sent] * len(codes)


def saves(out: Path, tries: int) -> Iterator[tuple[str, bool]]:
    """Kill a training at a random time, or while it writes; every checkpoint must be readable."""
    case = Case(saves=True)
    wanted, read = finish(out / "unbroken", case), 0
    for number in range(tries):
        folder = out / f"run_{number // 3}"  # three kills each, then the run is finished
        within = bool(number % 2)
        (process,) = start(folder, case)
        kill_while_it_saves(process, folder / "ckpt", within)
        files = list((folder / "ckpt").glob("*.pth"))
        bad = [path.name for path in files if not readable(path)]
        read += len(files)
        yield f"killed {'within a save' if within else 'at random'}, {len(files)} checkpoints: {bad}", not bad
        if number % 3 == 2:
            yield "resumed to the bits of the unbroken run", not differs(finish(folder, case), wanted)
    print(f"checkpoints that were read: {read}")


def kill_while_it_saves(process: Any, folder: Path, within: bool) -> None:
    until, wait = time.monotonic() + 60, random.uniform(0.0, 0.6)
    while process.is_alive() and time.monotonic() < until:
        if within and random.random() < 0.2 and next(folder.glob(".*.part"), None) is not None:
            break
        if not within and folder.is_dir() and (wait := wait - 0.001) < 0:
            break
        time.sleep(0.001)
    process.kill()
    process.join()


def readable(path: Path) -> bool:
    try:
        return "model_state" in load_checkpoint(path)
    except CheckpointError:
        return False


def restarts(out: Path, tries: int) -> Iterator[tuple[str, bool]]:
    """Kill a rank before the first checkpoint, in the last steps, or at random; torchrun starts all again."""
    with processes(out / "unbroken") as made:
        start_ranks(made, out / "unbroken", 40)
        assert made.codes() == [0, 0], made.text
    for number in range(tries):
        folder = out / str(number)
        at = (1, 39, random.randint(2, 38))[number % 3]
        with processes(folder) as made:
            agent, rank = start_torchrun(made, folder, 40), random.randrange(2)
            made.printed(f"rank {rank} iteration {at}\n")
            os.kill(children(agent)[rank], signal.SIGKILL)
            codes = made.codes()
        done = codes == [0] and not differs(final_weights(folder), final_weights(out / "unbroken"))
        yield f"rank {rank} killed in iteration {at}: exit codes {codes}", done


class Memory(Hook):
    """Resident memory (MB) every 500 iterations."""

    def after_step(self, trainer: Trainer) -> None:
        if trainer.iteration % 500 == 0:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            trainer.results.setdefault("memory_mb", []).append(pages * os.sysconf("SC_PAGE_SIZE") / 1e6)


def memory(out: Path, tries: int) -> Iterator[tuple[str, bool]]:
    """Train a small PointPillars, frozen in part, for ``tries`` iterations; the first 1,000 do not count."""
    from tool_runs import CFG, FREEZE, SMALL

    import pcdet_freeze

    words = [*SMALL, *FREEZE, "DATA_CONFIG.NUM_SCENES.train", "60", "DATA_CONFIG.CACHE", "memory",
             "HOOK", "[{NAME: measure.Memory}]"]  # fmt: skip
    result = pcdet_freeze.train(
        CFG, words, output_dir=out, max_iters=tries, batch_size=1, workers=0, device="cpu",
        num_epochs_to_eval=0, fix_random_seed=True,
    )  # fmt: skip
    found = result.results["memory_mb"][1:]
    growth = (found[-1] - found[0]) / (len(found) - 1) * 2
    yield (
        f"resident memory {found[0]:.1f} .. {found[-1]:.1f} MB: {growth:.2f} MB per 1,000 iterations",
        growth < 2,
    )


WHAT = {"resume": (resume, 104), "saves": (saves, 48), "restarts": (restarts, 20), "memory": (memory, 3000)}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("--tries", type=int, help="broken runs; for memory, iterations")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    random.seed(args.seed)
    torch.set_num_threads(1)
    measure, tries = WHAT[args.what]
    verdicts: Counter[bool] = Counter()
    with tempfile.TemporaryDirectory(prefix="measure-") as folder:
        for text, good in measure(Path(folder), args.tries or tries):
            verdicts[good] += 1
            print("ok  " if good else "FAIL", text, flush=True)
    print(f"{args.what}: {verdicts[True]} of {verdicts.total()}")
    return int(verdicts[False] > 0)


if __name__ == "__main__":
    sys.exit(main())
