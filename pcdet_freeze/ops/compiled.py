"""``numba.njit`` whose machine code is kept on disk for the next start, safely.

The cache lies in ``$NUMBA_CACHE_DIR`` if that is set, else in ``__pycache__`` next to the module, else, where
an installed package is read-only, in the user's cache folder. If none of them is writable, each process
compiles for itself. Three things are added to numba's own cache:

* The code of a function depends on the functions that it calls. An entry is valid only if no file of the
  function's folder has changed, not just its own file: compiled functions call those of their folder only.
* Several processes may start at once. numba writes an index and numbered data files; two processes that write
  different entries at the same time can leave an index that names the data of the other one. A file lock
  keeps index and data together.
* A cache that cannot be read (cut short, another version) or written (disk full) is no error: the function is
  compiled.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

import numba
from numba.core.caching import FunctionCache

try:
    import fcntl
except ImportError:  # not a POSIX system: numba's own order of writing has to do
    fcntl = None  # type: ignore[assignment]

F = TypeVar("F", bound=Callable[..., Any])
LOCK = "pcdet_freeze.lock"


def compiled(function: F) -> F:
    """Compile on the first call, or load what an earlier process compiled; releases the GIL, IEEE arithmetic.

    Type checkers see the original signature.
    """
    dispatcher: Any = numba.njit(nogil=True, error_model="numpy")(function)
    with suppress(RuntimeError):  # numba finds no folder to write to
        dispatcher._cache = _Cache(function)
    return cast(F, dispatcher)


class _Cache(FunctionCache):
    """numba's cache of one function, see above."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__(function)
        folder = Path(function.__code__.co_filename).parent
        self._cache_file._source_stamp = (self._cache_file._source_stamp, _digest_of(folder))

    def load_overload(self, signature: Any, target: Any) -> Any:
        """Return the stored result of a compilation; None without one."""
        try:
            with _locked(Path(self.cache_path), exclusive=False):
                return super().load_overload(signature, target)
        except Exception:  # unpickling damaged data can raise anything
            return None

    def save_overload(self, signature: Any, result: Any) -> None:
        """Store the result of a compilation, where the folder can be written to."""
        try:
            with _locked(Path(self.cache_path), exclusive=True):
                super().save_overload(signature, result)
        except Exception:  # a damaged index, a full disk: the function is compiled all the same
            self._start_again()

    def _start_again(self) -> None:
        """Empty an index that cannot be used, so that the next process can store its results."""
        try:
            with _locked(Path(self.cache_path), exclusive=True):
                self.flush()
        except OSError:
            self.disable()


@functools.cache
def _digest_of(folder: Path) -> str:
    """Digest of the Python files in ``folder``."""
    found = hashlib.blake2b(digest_size=16)
    for path in sorted(folder.glob("*.py")):
        found.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()


@contextmanager
def _locked(folder: Path, *, exclusive: bool) -> Iterator[None]:
    """Hold the lock of a cache folder; without one where the file system has no locks."""
    if fcntl is None:
        yield
        return
    with (folder / LOCK).open("a") as file:
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        yield  # closing the file releases the lock
