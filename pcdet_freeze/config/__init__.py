"""Configs: YAML files with their bases, `--set`, and the file and line of every key."""

from pcdet_freeze.config.cfg import (
    cfg_from_args,
    cfg_from_list,
    cfg_from_yaml_file,
    load_cfg,
    locate,
    plain,
    where,
)

__all__ = ["cfg_from_args", "cfg_from_list", "cfg_from_yaml_file", "load_cfg", "locate", "plain", "where"]
