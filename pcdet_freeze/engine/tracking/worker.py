"""The process of a tracker: reads messages, one JSON object a line, and hands them to the tracker's package.

It is run as a script and imports neither torch nor anything of this package but the classes of the trackers:
it starts in the time of a bare interpreter. What it says goes to the training as one JSON object a line:
``started``, ``note``, ``error``, ``done``. Where the training ends without a last message, the run is marked
as killed.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

SOURCES = {
    "wandb": "pcdet_freeze.engine.tracking.wandb_run",
    "mlflow": "pcdet_freeze.engine.tracking.mlflow_run",
}
FLUSH_S = 2.0
"""seconds that figures wait for others at most, before they are sent together"""
LAST_S = 600
"""seconds to finish in where the training is gone"""
SECRET = re.compile(r"KEY|TOKEN|PASSWORD|SECRET|PASSWD", re.IGNORECASE)
"""in the name of an environment variable whose value must not be repeated"""
USER = re.compile(r"//[^/\s]+@")
"""name and password in an address"""

Message = dict[str, Any]
Say = Callable[[Message], None]


class TrackedRun(Protocol):
    """A run of a tracker."""

    id: str

    def scalars(self, axis: str, step: int, epoch: float, values: Mapping[str, float]) -> None:
        """Values over ``axis``, which is ``iteration`` or ``epoch``; ``step`` is the place on it."""

    def flush(self) -> None:
        """Send the scalars that wait."""

    def picture(self, tag: str, step: int, png: bytes) -> None:
        """A picture at an iteration."""

    def curves(self, tag: str, step: int, columns: Mapping[str, list[Any]]) -> None:
        """Precision-recall curves at an iteration: columns of curve, recall, precision, threshold, ..."""

    def note(self, values: Mapping[str, Any]) -> None:
        """Facts about the run that became known later."""

    def artefact(self, name: str, kind: str, paths: list[str]) -> None:
        """Files that belong to the run."""

    def finish(self, outcome: str) -> None:
        """``finished``, ``failed`` or ``killed``; sends what is left."""


def serve(start: Callable[[Message], TrackedRun], messages: Iterator[Message | None], say: Say) -> None:
    """Handle ``messages`` up to the last; None: there are no more at present.

    An error is said once; later messages are tried all the same.
    """
    run, finished, said = None, False, False
    for message in messages:
        try:
            if message is None:
                if run is not None:
                    run.flush()
            elif message["do"] == "start":
                run = start(message)
                say({"started": run.id})
            elif run is not None:
                finished = handle(run, message)
        except (Exception, SystemExit) as error:
            if not said:
                say({"error": first_line(error)})
            said = True
            if run is None:
                return
            finished = message is not None and message["do"] == "finish"
        if finished:
            say({"done": True})
            return
    if run is not None:
        run.finish("killed")


def handle(run: TrackedRun, message: Message) -> bool:
    """Do what a message says; whether it was the last one."""
    do = message["do"]
    if do == "scalars":
        run.scalars(message["axis"], message["step"], message["epoch"], message["values"])
        return False
    run.flush()
    if do == "picture":
        run.picture(message["tag"], message["step"], base64.b64decode(message["png"]))
    elif do == "curves":
        run.curves(message["tag"], message["step"], message["columns"])
    elif do == "note":
        run.note(message["values"])
    elif do == "artefact":
        run.artefact(message["name"], message["kind"], message["paths"])
    elif do == "finish":
        run.finish(message["outcome"])
    return bool(do == "finish")


def first_line(error: BaseException) -> str:
    """Class and first line of an error, without secrets."""
    lines = str(error).strip().splitlines()
    return redacted(f"{type(error).__name__}: {lines[0][:500] if lines else 'no message'}")


def redacted(text: str) -> str:
    """``text`` without passwords in addresses, and without the values of secret environment variables."""
    text = USER.sub("//***@", text)
    secrets = (value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 6)
    for value in secrets:
        text = text.replace(value, "***")
    return text


def messages_of(handle: int) -> Iterator[Message | None]:
    """The messages in a pipe; None after ``FLUSH_S`` seconds, and where no message has waited so long."""
    data, flushed = b"", time.monotonic()
    while True:
        if time.monotonic() - flushed > FLUSH_S or not select.select([handle], [], [], FLUSH_S)[0]:
            flushed = time.monotonic()
            yield None
            continue
        part = os.read(handle, 1 << 20)
        if not part:
            return
        *lines, data = (data + part).split(b"\n")
        for line in lines:
            yield json.loads(line)


def remember(folder: str, name: str, run_id: str) -> None:
    """Store the id of the run, for a resume."""
    path = Path(folder) / f"tracker_{name}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps({"id": run_id}) + "\n")
    part.replace(path)


def main(name: str) -> None:
    """Serve the tracker ``name`` over standard input and output, which its package does not see."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the training says how it ended
    source, sink = os.dup(0), os.dup(1)
    null = os.open(os.devnull, os.O_RDWR)
    for handle in (0, 1, 2):
        os.dup2(null, handle)

    def say(message: Message) -> None:
        with contextlib.suppress(OSError):  # the training is gone
            os.write(sink, json.dumps(message).encode() + b"\n")

    def start(message: Message) -> TrackedRun:
        run: TrackedRun = import_module(SOURCES[name]).start(
            message, lambda text: say({"note": redacted(text)})
        )
        try:
            remember(message["folder"], name, run.id)
        except OSError as error:
            say({"note": f"a resume will begin a new run: {first_line(error)}"})
        return run

    def watched() -> Iterator[Message | None]:
        yield from messages_of(source)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(LAST_S)

    serve(start, watched(), say)


if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[3])  # this package, and no module beside this file
    main(sys.argv[1])
