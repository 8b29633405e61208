"""Configs: YAML files with their bases, `--set`, and the file and line of every key."""

from pcdet_freeze.config.cfg import (
    apply_overrides,
    cfg_faults,
    cfg_from_list,
    cfg_from_yaml_file,
    load_cfg,
    locate,
    plain,
    where,
)
from pcdet_freeze.config.find import find_config

__all__ = [
    "apply_overrides",
    "cfg_faults",
    "cfg_from_list",
    "cfg_from_yaml_file",
    "find_config",
    "load_cfg",
    "locate",
    "plain",
    "where",
]
