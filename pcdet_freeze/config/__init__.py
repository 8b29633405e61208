"""Configs: YAML files with their bases, `--set`, and the file and line of every key."""

from pcdet_freeze.config.cfg import (
    cfg_from_list,
    cfg_from_yaml_file,
    locate,
    plain,
    where,
)
from pcdet_freeze.config.find import find_config

__all__ = ["cfg_from_list", "cfg_from_yaml_file", "find_config", "locate", "plain", "where"]
