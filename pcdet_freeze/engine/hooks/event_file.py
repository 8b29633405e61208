"""TensorBoard events, written by the caller's own thread: a full disk must not end or stop a training.

tensorboardX's SummaryWriter hands events to a thread of its own. Where that thread ends with an error, the
queue fills, and the next ``add_scalar`` waits for a reader that is gone.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from pcdet_freeze.evaluation.precision_recall import PrecisionRecall


class EventFile:
    """An events file in ``folder``. After the first error of the disk: one warning, and nothing is written.

    Args:
        flush_s: seconds between two writes to the disk.
    """

    def __init__(self, folder: Path, logger: logging.Logger, flush_s: float = 120) -> None:
        self.folder, self.logger, self.flush_s = folder, logger, flush_s
        self._writer: Any = None
        self._flushed = time.monotonic()
        try:
            from tensorboardX.event_file_writer import EventsWriter
        except ModuleNotFoundError:
            logger.warning("tensorboardX is not installed: no events are written to %s", folder)
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = f".{time.time_ns() % 10**9:09d}"  # of the second that is in the name: each run has a file
            self._writer = EventsWriter(str(folder / "events"), part)
        except OSError as error:
            self._give_up(error)

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        """Append one value."""
        if self._writer is None:
            return
        from tensorboardX.summary import scalar

        self._add(scalar(tag, value), step)

    def add_picture(self, tag: str, png: bytes, step: int) -> None:
        """Append a picture, as it is in its file."""
        if self._writer is None:
            return
        from tensorboardX.proto.summary_pb2 import Summary

        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # the PNG's first chunk
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
        self._add(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def add_curve(self, curve: PrecisionRecall, tag: str, step: int) -> None:
        """Append a curve with one point or more; TensorBoard wants it by rising threshold."""
        if self._writer is None:
            return
        from tensorboardX.summary import pr_curve_raw

        unknown = np.zeros(len(curve.true))  # of all that is no object there is no number
        columns = (curve.true, curve.false, unknown, curve.labels - curve.true, curve.precision, curve.recall)
        self._add(pr_curve_raw(tag, *(each[::-1] for each in columns), num_thresholds=len(unknown)), step)

    def drop_after(self, step: int) -> None:
        """Make TensorBoard ignore what earlier files have after ``step``: a run resumes there."""
        if self._writer is None:
            return
        from tensorboardX.proto.event_pb2 import Event, SessionLog

        self._write(
            Event(session_log=SessionLog(status=SessionLog.START), step=step + 1, wall_time=time.time())
        )

    def flush(self) -> None:
        """Write what waits to the disk."""
        if self._writer is None:
            return
        self._flushed = time.monotonic()
        try:
            self._writer.flush()
        except OSError as error:
            self._give_up(error)

    def close(self) -> None:
        """Write what is left."""
        writer = self._writer
        if writer is None:
            return
        try:
            writer.close()
            self._writer = None
        except OSError as error:
            self._give_up(error)

    def _add(self, summary: Any, step: int) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._write(Event(summary=summary, step=step, wall_time=time.time()))

    def _write(self, event: Any) -> None:
        try:
            self._writer.write_event(event)
        except OSError as error:
            self._give_up(error)
            return
        if time.monotonic() - self._flushed > self.flush_s:
            self.flush()

    def _give_up(self, error: OSError) -> None:
        writer, self._writer = self._writer, None
        self.logger.warning(
            "TensorBoard events cannot be written to %s (%s): the run continues without them.",
            error.filename or self.folder,
            error.strerror or error,
        )
        try:
            if writer is not None:
                writer._py_recordio_writer.close()  # frees the file; what is buffered is lost
        except OSError:
            return
