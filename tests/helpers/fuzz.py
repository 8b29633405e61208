"""Seeded fuzz over what users and disks can hand to a run: python tests/helpers/fuzz.py --cases 10000

A case is a kind and a seed. It damages one input, reads it as a run does, and is judged:

* refused: an exception of this package, the right answer for damage;
* accepted: what was read is plausible (finite, in range, a rotation, ...);
* a fault: any other exception, a value that is not plausible, more than ``LIMIT`` seconds, or a hang.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fuzz_damage import Random
from fuzz_kinds import KINDS, Bench

from pcdet_freeze.errors import PCDetFreezeError

LIMIT = 10.0
"""seconds of a case: of the process, since other programs may use the machine"""
HANG = 60.0
"""seconds by the clock"""


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
    verdict, begin = "accepted", time.process_time()
    try:
        with limited(HANG):
            KINDS[kind](bench, rng)
    except PCDetFreezeError:
        verdict = "refused"
    except Exception as error:
        return f"{type(error).__name__}: {str(error)[:300]}"
    return verdict if time.process_time() - begin < LIMIT else f"more than {LIMIT:g} s"


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
    logging.getLogger("pcdet_freeze").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        report = fuzz(args.cases, Path(folder), args.first, tuple(args.kinds))
    print(report)
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
