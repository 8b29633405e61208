"""YAML files with their bases -> plain data, with the file and line of every key.

`_BASE_CONFIG_: other.yaml` (in any mapping) starts that mapping from another file. It is looked for beside
the file, in the file's config root (the folder that holds its `cfgs/`), in the working directory, then among
the packaged configs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pcdet_freeze.config.find import packaged_configs
from pcdet_freeze.errors import ConfigError

BASE = "_BASE_CONFIG_"
Marks = dict[str, str]
"""dotted key -> "file, line N\""""


MOST_BYTES, MOST_NODES, MOST_LEVELS = 2**20, 100_000, 50
"""bounds of a config: size of a file, values with each reference written out, levels of nesting"""


class Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number and `- !a.b` as the string `!a.b`.

    A scalar that looks like a number or a date but is none (`0x_`, `2001-99-99`) is a ConstructorError.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See yaml.constructor.BaseConstructor."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError, TypeError, ArithmeticError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"not a value of the kind {kind} ({str(error)[:80]})"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


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
    data, marks = read_yaml(text, str(path))
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys; got {type(data).__name__}")
    return data, marks


def read_yaml(text: str, place: str) -> tuple[Any, Marks]:
    """Return the value of ``text`` ({} where it is empty) and the line of each key.

    Time and memory are bounded by the length of ``text``, also where it refers to values many times.

    Raises:
        ConfigError: text that does not parse or goes beyond a bound, a key twice or that is no name; the
            message begins with ``place``, the name of a file, and has the line.
    """
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{place}: a config has at most {MOST_BYTES} characters; got {len(text)}")
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        walk = _Walk(place)
        walk(node, "")
        data = loader.construct_document(node) if node is not None else {}
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise ConfigError(
            f"{place}{line}: not valid YAML: {error.problem} "
            "(quote entries that begin with ! or * or hold [])"
        ) from error
    except yaml.reader.ReaderError as error:
        number = text.count("\n", 0, error.position) + 1
        raise ConfigError(
            f"{place}, line {number}: not valid YAML: the character U+{error.character:04X} may not be in a "
            "text. Remove it"
        ) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{place}: not valid YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{place}: nested too deeply: a config has at most {MOST_LEVELS} levels") from error
    return data, walk.marks


class _Walk:
    """Records the file and line of each key; raises ConfigError for a key that cannot be used."""

    def __init__(self, path: str) -> None:
        self.path, self.left = path, MOST_NODES
        self.marks: Marks = {}

    def __call__(self, node: yaml.Node | None, prefix: str, level: int = 0) -> None:
        self.left -= 1
        if node is None:
            return
        place = f"{self.path}, line {node.start_mark.line + 1}"
        if level > MOST_LEVELS:
            raise ConfigError(f"{place}: nested too deeply: a config has at most {MOST_LEVELS} levels")
        if self.left < 0:
            raise ConfigError(
                f"{place}: a config has at most {MOST_NODES} values, each reference (*name) written out"
            )
        if isinstance(node, yaml.MappingNode):
            for name, value, mark in self._keys(node, prefix):
                self.marks[f"{prefix}{name}"] = mark
                self(value, f"{prefix}{name}.", level + 1)
        elif isinstance(node, yaml.SequenceNode):
            for index, item in enumerate(node.value):
                self.marks[f"{prefix}{index}"] = f"{self.path}, line {item.start_mark.line + 1}"
                self(item, f"{prefix}{index}.", level + 1)

    def _keys(self, node: yaml.MappingNode, prefix: str) -> Iterator[tuple[str, yaml.Node, str]]:
        """Name, value and place of each key."""
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            name = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
            place = f"{self.path}, line {line}"
            if key.tag not in _KEY_TAGS or hasattr(dict, name) or not name.isprintable():
                raise ConfigError(
                    f"{place}: a key must be a name (letters, digits, _), no number, list or word such as "
                    f"'on' or 'items'; got {name[:80]!r} in {prefix.rstrip('.') or 'the config'}. Quote or "
                    "rename it"
                )
            if name in seen and name != "<<":
                raise ConfigError(
                    f"{place}: key {prefix}{name} is a duplicate of line {seen[name]}: keep one"
                )
            seen[name] = line
            yield name, value, place


_KEY_TAGS = ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")


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
