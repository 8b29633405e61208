"""Read TensorBoard's events."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboardX.proto.event_pb2 import Event


def records_in(folder: Path) -> Iterator[Event]:
    """The events of all files (length, its checksum, record, its checksum)."""
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            record, data = data[12 : 12 + length], data[16 + length :]
            yield Event.FromString(record)


def events_in(folder: Path) -> Iterator[tuple[str, int, Any]]:
    """Tag, step and value, in the order of writing."""
    for event in records_in(folder):
        for value in event.summary.value:
            yield value.tag, event.step, value


def sessions_in(folder: Path) -> list[int]:
    """The steps from which a new session counts."""
    return [event.step for event in records_in(folder) if event.HasField("session_log")]


def scalars_in(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value), in the order of writing."""
    found: dict[str, list[tuple[int, float]]] = {}
    for tag, step, value in events_in(folder):
        if value.HasField("simple_value"):
            found.setdefault(tag, []).append((step, value.simple_value))
    return found
