"""``python -m pcdet_freeze.openpcdet tools/train.py ...``: run a script of OpenPCDet with the plugin."""

from __future__ import annotations

import os
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from pcdet_freeze.errors import ConfigError, IntegrationError
from pcdet_freeze.integrations.openpcdet.command.environment import advice_for
from pcdet_freeze.integrations.openpcdet.command.installation import GET_ONE, find_pcdet, say_found
from pcdet_freeze.integrations.openpcdet.plugin import install, installed
from pcdet_freeze.utils import distributed


def run_script(argv: Sequence[str]) -> None:
    """Run the script ``argv[0]`` with the arguments ``argv[1:]`` as Python does, with the plugin installed.

    Raises:
        ConfigError: there is no such script.
        IntegrationError: the script cannot import pcdet.
    """
    script = Path(argv[0])
    if not script.is_file():
        raise ConfigError(
            "python -m pcdet_freeze.openpcdet needs a script, or the command explain or verify, but got "
            f"{argv[0]!r}, which is not a file. {where_to_start()}"
        )
    script, args = enter_tools(script.resolve(), argv[1:])
    sys.argv = [str(script), *args]
    sys.path[0] = str(script.parent)
    install()
    say_found([script.parent, script.parent.parent])
    try:
        runpy.run_path(str(script), run_name="__main__")
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "pcdet":
            raise
        raise pcdet_missing(error) from error
    except Exception as error:
        advice = advice_for(error)
        if advice:
            print(f"pcdet_freeze: {advice}", file=sys.stderr)
        raise
    finish()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        distributed.settle()


def enter_tools(script: Path, args: Sequence[str]) -> tuple[Path, list[str]]:
    """Change to OpenPCDet's tools folder, where its scripts expect to run, if ``script`` is in one.

    They resolve ``_BASE_CONFIG_`` and data relative to the working directory. Arguments that are paths of
    existing files are rewritten accordingly: ``tools/cfgs/a.yaml`` becomes ``cfgs/a.yaml``.
    """
    folder = script.parent
    here = Path.cwd()
    is_tools = (folder / "cfgs").is_dir() and (folder / "train_utils").is_dir()
    if not is_tools or folder == here:
        return script, list(args)
    args = [_relative_to(folder, here, arg) for arg in args]
    os.chdir(folder)
    return script, args


def _relative_to(folder: Path, here: Path, arg: str) -> str:
    flag, sign, path = arg.partition("=") if arg.startswith("--") else ("", "", arg)
    if not path or Path(path).is_absolute() or not (here / path).exists():
        return arg
    return f"{flag}{sign}{os.path.relpath(here / path, folder)}"


def pcdet_missing(error: ImportError) -> IntegrationError:
    """The error to raise if pcdet, or a part of it, cannot be imported."""
    return IntegrationError(
        f"The plugin needs an OpenPCDet that is installed in this Python ({sys.executable}), but "
        f"{error.name} cannot be imported ({error}). {GET_ONE}"
    )


def where_to_start() -> str:
    """What to type: depends on whether an OpenPCDet is in this folder, is installed, or neither."""
    example = "python -m pcdet_freeze.openpcdet tools/train.py --cfg_file ..."
    if Path("tools/train.py").is_file():
        return f"For example: {example}"
    pcdet = find_pcdet(Path.cwd())
    if pcdet is None:
        return f"There is no OpenPCDet in this folder or in this Python ({sys.executable}). {GET_ONE}"
    return f"This folder is no OpenPCDet; the one of this Python is: cd {pcdet.parent}, then {example}"


def finish() -> None:
    """The script ended: run the last checks of sessions that are still open."""
    plugin = installed()
    if plugin is None:
        return
    if not plugin.has_built:
        print("pcdet_freeze: this script did not call pcdet.models.build_network", file=sys.stderr)
    for session in plugin.sessions():
        if session.has_begun and not session.has_ended:
            session.end()
