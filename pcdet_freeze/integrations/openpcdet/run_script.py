"""``python -m pcdet_freeze.openpcdet tools/train.py ...``: a script of OpenPCDet, with the plugin on."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from pcdet_freeze.errors import ConfigError, IntegrationError
from pcdet_freeze.integrations.openpcdet.environment import cure_of
from pcdet_freeze.integrations.openpcdet.plugin import install, installed
from pcdet_freeze.utils import distributed


def run_script(words: Sequence[str]) -> None:
    """Run the script ``words[0]`` with the arguments ``words[1:]`` as Python would, with the plugin on.

    Raises:
        ConfigError: there is no such script.
        IntegrationError: the script cannot import pcdet.
    """
    script = Path(words[0])
    if not script.is_file():
        raise ConfigError(
            "python -m pcdet_freeze.openpcdet needs a script to run, or explain or verify; got "
            f"{words[0]!r}, which is no file. Write e.g. python -m pcdet_freeze.openpcdet tools/train.py "
            "--cfg_file ..."
        )
    script, words = enter_tools(script.resolve(), words[1:])
    sys.argv = [str(script), *words]
    sys.path[0] = str(script.parent)
    install()
    try:
        runpy.run_path(str(script), run_name="__main__")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "pcdet":
            raise
        raise no_pcdet(error) from error
    except Exception as error:
        cure = cure_of(error)
        if cure:
            print(f"pcdet_freeze: {cure}", file=sys.stderr)
        raise
    finish()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.settle()


def enter_tools(script: Path, words: Sequence[str]) -> tuple[Path, list[str]]:
    """Go to OpenPCDet's tools folder, where its scripts expect to run, if ``script`` lies in one.

    They look for ``_BASE_CONFIG_`` and for data from the working directory. Words that name existing files
    are rewritten to name them from there: ``tools/cfgs/a.yaml`` becomes ``cfgs/a.yaml``.
    """
    folder = script.parent
    here = Path.cwd()
    is_tools = (folder / "cfgs").is_dir() and (folder / "train_utils").is_dir()
    if not is_tools or folder == here:
        return script, list(words)
    moved = [_from(folder, here, word) for word in words]
    os.chdir(folder)
    return script, moved


def _from(folder: Path, here: Path, word: str) -> str:
    flag, sign, path = word.partition("=") if word.startswith("--") else ("", "", word)
    if not path or Path(path).is_absolute() or not (here / path).exists():
        return word
    return f"{flag}{sign}{os.path.relpath(here / path, folder)}"


def no_pcdet(error: ImportError) -> IntegrationError:
    """What to raise where pcdet, or a part of it, cannot be imported."""
    return IntegrationError(
        f"The plugin works inside an OpenPCDet that is installed in this Python ({sys.executable}), but "
        f"{error.name} cannot be imported ({error}): run `python setup.py develop` in its folder"
    )


def finish() -> None:
    """The script is over: check what its loop did not, and say where nothing was frozen at all."""
    plugin = installed()
    if plugin is None:
        return
    if not plugin.has_built:
        print("pcdet_freeze: this script built no model by pcdet.models.build_network", file=sys.stderr)
    for session in plugin.sessions():
        if session.has_begun and not session.has_ended:
            session.end()
