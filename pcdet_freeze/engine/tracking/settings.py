"""Which trackers a run has: OPTIMIZATION.TRACKER, or the option ``tracker``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.machinery import NamespaceLoader
from importlib.util import find_spec
from typing import Any

from pcdet_freeze.errors import ConfigError

TRACKERS = ("wandb", "mlflow")
NONE = "none"


def tracker_names(cfg: Mapping[str, Any], option: str | None) -> tuple[str, ...]:
    """The trackers of a run; ``option`` ("wandb", "wandb,mlflow" or "none") replaces the config's.

    Raises:
        ConfigError: an option that names no tracker, or a package that is not installed.
    """
    if option is None:
        chosen = cfg.get("OPTIMIZATION", {}).get("TRACKER") or ()
        names = (chosen,) if isinstance(chosen, str) else tuple(chosen)
    else:
        names = named_in(option)
    missing = [name for name in names if not is_installed(name)]
    if missing:
        raise ConfigError(
            f"OPTIMIZATION.TRACKER, or --tracker, needs the packages of the trackers; not installed: "
            f"{', '.join(missing)}. Install them: pip install 'pcdet-freeze[trackers]'"
        )
    return tuple(dict.fromkeys(names))


def named_in(option: str) -> tuple[str, ...]:
    """The trackers of the option; ConfigError for another word."""
    words = [word.strip() for word in option.split(",") if word.strip()]
    wrong = [word for word in words if word not in TRACKERS]
    if words == [NONE]:
        return ()
    if wrong or not words:
        raise ConfigError(
            f"--tracker must be {', '.join(TRACKERS)}, both with a comma, or {NONE}; got {option!r}"
        )
    return tuple(words)


def is_installed(package: str) -> bool:
    """Whether a package can be imported; a folder of that name, as wandb makes one, does not count."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None and not isinstance(spec.loader, NamespaceLoader)
