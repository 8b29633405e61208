"""Read what wandb writes offline: the records of its run file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 1 << 15


def records_in(folder: Path) -> Iterator[Any]:
    """The records of all runs below ``folder``, by time of their beginning.

    A file is a log of blocks, as LevelDB writes it: each part of a record has a checksum (4 bytes), a length
    (2 bytes) and a kind: whole, first, middle or last (1 byte).
    """
    from wandb.proto.wandb_internal_pb2 import Record

    for file in sorted(folder.rglob("run-*.wandb")):
        data, at, whole = file.read_bytes(), HEADER, b""
        while at + 7 <= len(data):
            if BLOCK - at % BLOCK < 7:
                at += BLOCK - at % BLOCK
                continue
            length, kind = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
            whole += data[at + 7 : at + 7 + length]
            at += 7 + length
            if kind in (1, 4):
                yield Record.FromString(whole)
                whole = b""


def history_in(folder: Path) -> list[dict[str, Any]]:
    """The rows that were logged."""
    rows = (
        record.history.item for record in records_in(folder) if record.WhichOneof("record_type") == "history"
    )
    return [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in row} for row in rows
    ]
