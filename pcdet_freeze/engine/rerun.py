"""The command and the config that run a training again."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from pcdet_freeze.config import load_cfg, plain
from pcdet_freeze.config.yaml_files import read_yaml
from pcdet_freeze.engine.option_limits import default_workers
from pcdet_freeze.engine.run_context import RunContext, file_of
from pcdet_freeze.errors import PCDetFreezeError

COPY = "config.yaml"
"""name of a config's copy in the folder of a run, where it was read from no file"""
LEFT_OUT = frozenset({"notes", "launcher", "tcp_port"})
"""options that the command does not need"""


def rerun_command(context: RunContext) -> str:
    """The command that trains what ``context`` trained, however it was started."""
    file = file_of(context.cfg)
    path = file if file is not None else context.folders.root.resolve() / COPY
    words = [*_launcher(context), "--cfg_file", str(path), *_flags(context.options)]
    changed = _overrides(path, context.cfg) if file is not None else []
    if changed:
        words += ["--set", *changed]
    return shlex.join(words)


def _launcher(context: RunContext) -> list[str]:
    if context.world.size == 1 or context.options.launcher == "none":
        return ["pcdet-freeze", "train"]
    launcher = ["--launcher", context.options.launcher]
    if context.options.launcher == "slurm":
        return ["srun", f"--ntasks={context.world.size}", "pcdet-freeze", "train", *launcher]
    module = ["-m", "pcdet_freeze", "train"]
    return ["torchrun", f"--nproc_per_node={context.world.size}", *module, *launcher]


def _flags(options: Any) -> Iterator[str]:
    """Each option that differs from its default, as a flag."""
    for field in fields(options):
        value, default = getattr(options, field.name), field.default
        if field.name == "workers":
            default = default_workers()
        if field.name in LEFT_OUT or value == default:
            continue
        yield f"--{field.name}"
        if value is not True:
            yield str(value)


def _overrides(path: Path, cfg: Mapping[str, Any]) -> list[str]:
    """The words behind ``--set`` that make the config in ``path`` the one that was used."""
    try:
        written = plain(load_cfg(path))
    except (PCDetFreezeError, OSError):  # the file is gone, or another one by now
        return []
    return [word for key, value in differences(written, plain(cfg)) for word in (key, value)]


def differences(
    written: Mapping[str, Any], used: Mapping[str, Any], above: str = ""
) -> Iterator[tuple[str, str]]:
    """Keys of ``used`` whose value differs from ``written``, with the value as JSON, which YAML reads."""
    for key, value in used.items():
        name, then = f"{above}{key}", written.get(key)
        if key in written and value == then and type(value) is type(then):
            continue
        if isinstance(value, Mapping) and isinstance(then, Mapping):
            yield from differences(then, value, f"{name}.")
        else:
            yield name, value if isinstance(value, str) and _is_plain(value) else json.dumps(value)


def _is_plain(value: str) -> bool:
    """Whether YAML reads the text as itself, and not as a number, a list or nothing."""
    try:
        return bool(read_yaml(value, "--set")[0] == value)
    except PCDetFreezeError:
        return False


def check_commands(pretrained: str | Path | None, checkpoint: Path | None, frozen: bool) -> list[str]:
    """Commands that check what a report claims about the frozen state."""
    if checkpoint is None or not frozen or pretrained is None:
        return []
    return [shlex.join(["pcdet-freeze", "verify", str(pretrained), str(checkpoint)])]
