"""Find a config by its path, or by its name among the configs that come with the package.

A file in the working directory wins. ``synthetic_models/pointpillar.yaml`` and
``cfgs/synthetic_models/pointpillar.yaml`` both name the packaged config.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from pcdet_freeze.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]


def packaged_configs() -> Path:
    """The folder ``cfgs`` of the installed package, or of the checkout."""
    installed = PACKAGE / "cfgs"
    return installed if installed.is_dir() else PACKAGE.parent / "cfgs"


def config_names() -> list[str]:
    """Names of all packaged configs, such as ``kitti_models/second.yaml``."""
    root = packaged_configs()
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))


def find_config(name: str | Path) -> Path:
    """Return the config file ``name``: a path, or the name of a packaged config.

    Raises ConfigError where there is no such file; the message has the nearest packaged name.
    """
    path = Path(name)
    if path.is_file():
        return path
    relative = path.relative_to("cfgs") if path.parts[:1] == ("cfgs",) else path
    packaged = packaged_configs() / relative
    if not path.is_absolute() and packaged.is_file():
        return packaged
    close = difflib.get_close_matches(relative.as_posix(), config_names(), n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(
        f"config file cannot be read: {path.absolute()} is not a file, and no packaged config has this "
        f"name.{hint} Packaged configs are in {packaged_configs()}."
    )
