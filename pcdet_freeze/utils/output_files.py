"""Write the files of a run: an error of the system becomes one that names the path and says what to do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pcdet_freeze.errors import OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError of the block into an OutputError; the block writes ``path``, or files below it."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"The files of a run must be written, but {error.filename or path} cannot be: "
            f"{error.strerror or error}. Free disk space, or choose another --output_dir."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Write ``path`` as a whole, in UTF-8: a reader finds the former file or the new one.

    Raises OutputError.
    """
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_text(text, encoding="utf-8", errors="backslashreplace")
            part.replace(path)
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)
