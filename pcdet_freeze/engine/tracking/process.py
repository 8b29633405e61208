"""The training's end of a tracker: messages to its process, without ever waiting for it."""

from __future__ import annotations

import base64
import json
import logging
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pcdet_freeze.engine.tracking import worker
from pcdet_freeze.evaluation.precision_recall import PrecisionRecall

MOST_BYTES = 64_000_000
"""messages that wait for a tracker which does not read them"""
PART = 1 << 16
LOGGER = logging.getLogger("pcdet_freeze")


class TrackerProcess:
    """A tracker, ``wandb`` or ``mlflow``, in a process of its own.

    Its package is imported there: it cannot draw from the training's random generators, replace its signal
    handlers, hang it or end it. Ctrl-C does not reach the process. The first trouble is one warning.
    """

    def __init__(self, name: str, logger: logging.Logger) -> None:
        self.name, self.logger = name, logger
        self.started, self.refusal = False, ""
        self._process: subprocess.Popen[bytes] | None = None
        self._waiting, self._heard = bytearray(), b""
        self._warned = self._done = False

    def start(self, message: Mapping[str, Any]) -> None:
        """Start the process and the run; ``message`` describes it."""
        words = [sys.executable, worker.__file__, self.name]
        pipe = subprocess.PIPE
        try:
            self._process = subprocess.Popen(
                words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, bufsize=0, start_new_session=True
            )
        except OSError as error:
            self._fail(f"its process cannot be started: {error}")
            return
        for handle in _pipes(self._process):
            os.set_blocking(handle, False)
        self.send({"do": "start", **message})

    @property
    def is_running(self) -> bool:
        """Whether there is a process that takes messages."""
        return self._process is not None

    def wait_until_started(self, seconds: float) -> str:
        """Why the run could not be started; "" where it was, or where nothing is known after ``seconds``."""
        self._pump(seconds, lambda: self.started or bool(self.refusal))
        return self.refusal

    def send(self, message: Mapping[str, Any]) -> None:
        """Hand over a message; nothing is waited for."""
        if self._process is None:
            return
        with self._never_an_error():
            self._waiting += json.dumps(message, default=str).encode() + b"\n"
            self._exchange()
        if len(self._waiting) > MOST_BYTES:
            self._fail(f"it does not answer, and {len(self._waiting) >> 20} MiB wait for it")
            self._end(0)

    def wait_until_finished(self, seconds: float) -> None:
        """Wait until the tracker has done what the last message says; gives up after ``seconds``."""
        if not self._pump(seconds, lambda: self._done) and self._process is not None:
            self._fail(f"it has not finished within {seconds:.0f} s; it may lack the last figures and files")
        self._end(5)

    def _pump(self, seconds: float, is_over: Callable[[], bool]) -> bool:
        """Exchange messages until ``is_over``, at most ``seconds``; whether it is."""
        end = time.monotonic() + seconds
        while not is_over() and self._process is not None and (left := end - time.monotonic()) > 0:
            with self._never_an_error():
                sink, source = _pipes(self._process)
                select.select([source], [sink] if self._waiting else [], [], min(left, 1.0))
                self._exchange()
        return is_over()

    @contextmanager
    def _never_an_error(self) -> Iterator[None]:
        """Whatever the process says or does, the training goes on without it."""
        try:
            yield
        except (OSError, TypeError, ValueError) as error:
            self._fail(f"{type(error).__name__}: {error}")
            self._end(0)

    def _exchange(self) -> None:
        """Read what has come, and write what the pipe takes now."""
        if self._process is None:
            return
        sink, source = _pipes(self._process)
        ended = self._hear(source)
        try:
            while self._waiting and not ended:
                del self._waiting[: os.write(sink, self._waiting[:PART])]
        except BlockingIOError:
            return
        except OSError:
            ended = True
            self._hear(source)
        if ended:
            if not self._done:
                self._fail("its process has ended")
            self._end(5)

    def _hear(self, handle: int) -> bool:
        """Take in what the process says; whether it has closed the pipe."""
        part = b"-"
        with suppress(BlockingIOError):
            while part := os.read(handle, PART):
                self._heard += part
        *lines, self._heard = self._heard.split(b"\n")
        for line in lines:
            self._take(json.loads(line))
        return not part

    def _take(self, said: Mapping[str, Any]) -> None:
        self.started |= "started" in said
        self._done |= "done" in said
        if "note" in said:
            self.logger.info("%s: %s", self.name, said["note"])
        if "error" in said:
            self._fail(str(said["error"]).rstrip("."))

    def _fail(self, why: str) -> None:
        if not self.started:
            self.refusal = self.refusal or why
        if not self._warned:
            then = "The training continues" if self.started else "It has no run"  # which can be an error
            self.logger.warning("The tracker %s: %s. %s; TensorBoard has all figures.", self.name, why, then)
        self._warned = True

    def _end(self, seconds: float) -> None:
        """Close the pipes, and wait for the process for ``seconds``."""
        process, self._process = self._process, None
        if process is None:
            return
        for file in (process.stdin, process.stdout):
            if file is not None:
                file.close()
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Trackers:
    """All trackers of a run: none on ranks other than 0."""

    START_S, FINISH_S, STOP_S = 60.0, 900.0, 30.0
    """seconds to wait for the start of a new run, for its end with its files, and for its end otherwise"""

    def __init__(self, names: Sequence[str] = (), logger: logging.Logger = LOGGER) -> None:
        self._all = [TrackerProcess(name, logger) for name in names]
        self.logger = logger
        self._files: list[tuple[str, str, list[str]]] = []

    def __bool__(self) -> bool:
        return bool(self._all)

    def start(self, folder: Path, resumed: bool, message: Mapping[str, Any]) -> None:
        """Start all; a resumed run continues the runs whose ids are in ``folder``."""
        for tracker in self._all:
            known = _known_id(folder, tracker.name) if resumed else None
            tracker.start({**message, "folder": str(folder.resolve()), "resume": known})

    def refusals(self, seconds: float = math.inf) -> list[str]:
        """The trackers that could not start their run, with the reason.

        Waits for ``START_S`` or ``seconds``, whichever is less, for all together.
        """
        end = time.monotonic() + min(self.START_S, seconds)
        found = ((tracker.name, tracker.wait_until_started(end - time.monotonic())) for tracker in self._all)
        return [f"{name}: {why}" for name, why in found if why]

    def scalars(self, values: Mapping[str, float], axis: str, step: int, epoch: float) -> None:
        """Values over ``axis``, which is ``iteration`` or ``epoch``; ``step`` is the place on it."""
        self._send({"do": "scalars", "axis": axis, "step": step, "epoch": epoch, "values": values})

    def picture(self, tag: str, png: bytes, step: int) -> None:
        """A PNG at an iteration."""
        self._send({"do": "picture", "tag": tag, "step": step, "png": base64.b64encode(png).decode()})

    def curves(self, curves: Sequence[PrecisionRecall], step: int) -> None:
        """Precision-recall curves at an iteration: ``Car_3d/easy`` and ``Car_3d/hard`` are one table."""
        tables: dict[str, dict[str, list[Any]]] = {}
        for curve in curves:
            head, _, tail = curve.name.rpartition("/")
            parts = {
                "curve": [tail] * len(curve.true), "recall": curve.recall.tolist(),
                "precision": curve.precision.tolist(), "threshold": curve.thresholds.tolist(),
                "true": curve.true.tolist(), "false": curve.false.tolist(),
            }  # fmt: skip
            table = tables.setdefault(f"pr/{head}", {})
            for name, values in parts.items():
                table.setdefault(name, []).extend(values)
        for tag, columns in tables.items():
            self._send({"do": "curves", "tag": tag, "step": step, "columns": columns})

    def note(self, values: Mapping[str, Any]) -> None:
        """Facts about the run that became known later."""
        self._send({"do": "note", "values": values})

    def add_files(self, name: str, kind: str, paths: Sequence[Path]) -> None:
        """Files that are stored with the run when it ends."""
        if found := [str(path.resolve()) for path in paths if path.is_file()]:
            self._files.append((name, kind, found))

    def finish(self, error: BaseException | None) -> None:
        """End all runs as what they are: finished, failed by ``error``, or killed by a signal."""
        outcome = "finished" if error is None else "failed" if isinstance(error, Exception) else "killed"
        if running := [tracker.name for tracker in self._all if tracker.is_running]:
            self.logger.info("Waiting for %s", ", ".join(running))
        for name, kind, paths in self._files:
            self._send({"do": "artefact", "name": name, "kind": kind, "paths": paths})
        self._send({"do": "finish", "outcome": outcome})
        for tracker in self._all:
            tracker.wait_until_finished(self.FINISH_S if error is None else self.STOP_S)

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self.finish(error)

    def _send(self, message: Mapping[str, Any]) -> None:
        for tracker in self._all:
            tracker.send(message)


def _pipes(process: subprocess.Popen[bytes]) -> tuple[int, int]:
    """The pipe to the process, and the one from it."""
    assert process.stdin is not None and process.stdout is not None
    return process.stdin.fileno(), process.stdout.fileno()


def _known_id(folder: Path, name: str) -> str | None:
    """The id of the tracker's run that a run in ``folder`` began; None where it has none."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / f"tracker_{name}.json").read_text())["id"]
        return found if isinstance(found, str) else None
    return None
