"""One global cfg; bases relative to the working directory; `--set` for keys that are there."""

import os
from ast import literal_eval
from pathlib import Path

import yaml
from easydict import EasyDict

cfg = EasyDict()
cfg.ROOT_DIR = Path(os.environ.get("STANDIN_ROOT", Path(__file__).resolve().parents[1]))
cfg.LOCAL_RANK = 0


def cfg_from_yaml_file(cfg_file, config):
    with open(cfg_file) as file:
        _merge(config, yaml.safe_load(file))
    return config


def _merge(config, new):
    if "_BASE_CONFIG_" in new:
        with open(new["_BASE_CONFIG_"]) as file:
            config.update(EasyDict(yaml.safe_load(file)))
    for key, value in new.items():
        if isinstance(value, dict):
            _merge(config.setdefault(key, EasyDict()), value)
        else:
            config[key] = value


def cfg_from_list(cfg_list, config):
    assert len(cfg_list) % 2 == 0
    for key, text in zip(cfg_list[0::2], cfg_list[1::2], strict=True):
        node = config
        *parents, last = key.split(".")
        for name in parents:
            assert name in node, f"NotFoundKey: {name}"
            node = node[name]
        assert last in node, f"NotFoundKey: {last}"
        try:
            node[last] = literal_eval(text)
        except (ValueError, SyntaxError):
            node[last] = text


def log_config_to_file(cfg, pre="cfg", logger=None):
    for key, value in cfg.items():
        logger.info("%s.%s: %s", pre, key, value)
