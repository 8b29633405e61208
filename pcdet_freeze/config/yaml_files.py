"""YAML files with their bases -> plain data, with the file and line of every key.

`_BASE_CONFIG_: other.yaml` (in any mapping) starts that mapping from another file. It is looked for beside
the file, in the file's config root (the folder that holds its `cfgs/`), in the working directory, then among
the packaged configs.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from pcdet_freeze.config.find import packaged_configs
from pcdet_freeze.errors import ConfigError

BASE = "_BASE_CONFIG_"
Marks = dict[str, str]
"""dotted key -> "file, line N\""""


class Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number and `- !a.b` as the string `!a.b`."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _exemption(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode) and node.value == "":
        return f"!{suffix}"
    raise yaml.constructor.ConstructorError(None, None, f"unknown tag !{suffix}", node.start_mark)


Loader.add_multi_constructor("!", _exemption)


def load(path: Path, parents: tuple[Path, ...] = ()) -> tuple[dict[str, Any], Marks]:
    """Return the content of a file merged over that of its bases, and the file and line of each key.

    Args:
        parents: the files that name this one as their base, directly or not.
    Raises:
        ConfigError: a file that is missing or does not parse, a duplicate key, a cycle of bases.
    """
    path = path.resolve()
    if path in parents:
        raise ConfigError(f"{BASE} must not form a cycle; got {path} again")
    data, marks = _parse(path)
    return _with_bases(data, marks, path, (*parents, path), ""), marks


def _parse(path: Path) -> tuple[dict[str, Any], Marks]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config file cannot be read: {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file is not UTF-8 text: {path} ({error.reason})") from error
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        marks: Marks = {}
        _walk(node, "", path, marks)
        data = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{path}{line}: not valid YAML: {error.problem} (quote entries that begin with ! or * or hold [])"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys; got {type(data).__name__}")
    return data, marks


def _walk(node: yaml.Node | None, prefix: str, path: Path, marks: Marks) -> None:
    """Record the file and line of each key; raise ConfigError for a duplicate key in a mapping."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            name = str(key_node.value)
            if name in seen and name != "<<":
                place = f"{path}, line {line}: key {prefix}{name}"
                raise ConfigError(f"{place} is a duplicate of line {seen[name]}: keep one")
            seen[name] = line
            marks[f"{prefix}{name}"] = f"{path}, line {line}"
            _walk(value, f"{prefix}{name}.", path, marks)
    elif isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            marks[f"{prefix}{index}"] = f"{path}, line {item.start_mark.line + 1}"
            _walk(item, f"{prefix}{index}.", path, marks)


def _with_bases(
    data: dict[str, Any], marks: Marks, path: Path, parents: tuple[Path, ...], prefix: str
) -> dict[str, Any]:
    """Return ``data`` merged over its base, also in nested mappings; add the marks of the bases."""
    base: dict[str, Any] = {}
    if BASE in data:
        asked = data[BASE]
        if not isinstance(asked, str):
            raise ConfigError(f"{marks[prefix + BASE]}: {BASE} must be a file name; got {asked!r}")
        base, base_marks = load(_find_base(asked, path, marks[prefix + BASE]), parents)
        for key, place in base_marks.items():
            marks.setdefault(prefix + key, place)
    own = {
        key: _with_bases(value, marks, path, parents, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in data.items()
        if key != BASE
    }
    return _merge(base, own)


def _merge(base: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in own.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def config_roots(path: Path) -> list[Path]:
    """Return the folders whose ``cfgs`` folder contains ``path``, the nearest first."""
    return [parent.parent for parent in path.parents if parent.name == "cfgs"]


def _find_base(asked: str, path: Path, place: str) -> Path:
    packaged = packaged_configs()
    folders = [path.parent, *config_roots(path), Path.cwd(), packaged.parent, packaged]
    tried = [folder / asked for folder in folders]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    listing = "\n  ".join(str(p) for p in dict.fromkeys(tried))
    raise ConfigError(f"{place}: {BASE} {asked} was not found; looked for\n  {listing}")
