"""``--task my_head.py``: import a file of the user that calls ``add_task``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from pcdet_freeze.errors import ConfigError
from pcdet_freeze.integrations.openpcdet.tasks.registry import Task, put_back, registered

FLAG = "--task"

_tasks_of: dict[str, tuple[Task, ...]] = {}
"""name of an imported file -> the tasks that its import registered, which ``uninstall`` forgets"""


def take_task_files(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """(files of the leading ``--task FILE`` or ``--task=FILE``, the other words)."""
    words, files = list(argv), []
    while words and words[0].partition("=")[0] == FLAG:
        first = words.pop(0)
        if "=" not in first and not words:
            raise ConfigError(f"{FLAG} needs a Python file that calls add_task, but nothing follows it.")
        files.append(first.partition("=")[2] if "=" in first else words.pop(0))
    return files, words


def load_task_file(file: str) -> None:
    """Import ``file`` as a module of its own name, so that data workers can import it too.

    Raises:
        ConfigError: no such file, its name is that of another module, or it registers no task.
    """
    path = Path(file).resolve()
    if path.suffix != ".py" or not path.is_file() or not path.stem.isidentifier():
        raise ConfigError(
            f"{FLAG} needs a Python file that calls add_task and can be imported by its name; got {file!r}."
        )
    sys.path.append(str(path.parent))
    spec = importlib.util.find_spec(path.stem)
    if spec is None or spec.origin is None or Path(spec.origin).resolve() != path:
        raise ConfigError(
            f"Data workers import the file of {FLAG} by its name, but {path.stem!r} is another module "
            f"({getattr(spec, 'origin', None)}). Rename {path.name}."
        )
    before = registered()
    if path.stem in sys.modules:
        put_back(_tasks_of.get(path.stem, ()))
    else:
        importlib.import_module(path.stem)
        _tasks_of[path.stem] = tuple(task for task in registered() if task not in before)
    if registered() == before == ():
        raise ConfigError(f"The file of {FLAG} must call add_task, but {path.name} registered no task.")
