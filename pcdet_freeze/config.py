"""YAML -> EasyDict, with the file and line of every key at hand; `--set` on top. No global cfg.

`_BASE_CONFIG_: other.yaml` (in any mapping) starts that mapping from another file. It is looked for
beside the file, in the file's config root (the folder that holds its `cfgs/`), then in the working
directory, so OpenPCDet's own YAMLs work from anywhere.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from pcdet_freeze.config_types import KEY_TYPES, LIST_OF_NAMES, OPTIONAL_KEYS, TOP_LEVEL_KEYS
from pcdet_freeze.errors import ConfigError

BASE = "_BASE_CONFIG_"
Marks = dict[str, str]


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads `1e-3` as a number and `- !a.b` as the string `!a.b`."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _exemption(loader: yaml.SafeLoader, suffix: str, node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode) and node.value == "":
        return f"!{suffix}"
    raise yaml.constructor.ConstructorError(None, None, f"unknown tag !{suffix}", node.start_mark)


_Loader.add_multi_constructor("!", _exemption)


def cfg_from_yaml_file(path: str | Path) -> EasyDict:
    """Read a config with its bases.

    Args:
        path: a YAML file, relative to the working directory or absolute.
    Returns:
        EasyDict; `where(cfg, "MODEL.VFE")` tells the file and line of a key.
    Raises:
        ConfigError: missing file, YAML that does not parse, a duplicate key, an unknown top-level key,
            a value of the wrong type; the message names file and line.
    """
    data, marks = _load(Path(path), ())
    cfg = EasyDict(data)
    object.__setattr__(cfg, "_marks", marks)
    _check(cfg)
    return cfg


def cfg_from_list(items: Sequence[str], cfg: EasyDict) -> None:
    """Apply `--set KEY VALUE KEY VALUE ...` to ``cfg`` in place.

    Values are YAML (`0.01`, `True`, `"[1, 2]"`); a key that holds a list also takes `a,b`. A key must exist
    already, or be one of the freeze keys.

    Raises:
        ConfigError: an odd number of words, an unknown key (with the nearest known one), a wrong type. All
            checks of one pair precede its change.
    """
    if len(items) % 2:
        raise ConfigError(f"--set takes pairs KEY VALUE; got {len(items)} words: {' '.join(items)}")
    for key, text in zip(items[::2], items[1::2], strict=True):
        _set(cfg, key, text)
        marks = getattr(cfg, "_marks", None)
        if marks is not None:
            marks[key] = "--set"
    _check(cfg)


def where(cfg: Mapping, key: str) -> str:
    """File and line of a dotted key (or of the nearest parent that has one); "" when not known."""
    marks: Marks = getattr(cfg, "_marks", {})
    while key and key not in marks:
        key = key.rpartition(".")[0]
    return marks.get(key, "")


def locate(cfg: Mapping, message: str) -> str:
    """Return ``message`` with the file and line of the first dotted key that it names."""
    for key in re.findall(r"\b[A-Z][A-Z0-9_]+(?:\.[A-Za-z0-9_]+)*", message):
        place = where(cfg, key)
        if place and place not in message:
            return f"{message}\n  ({key}: {place})"
    return message


def plain(value: Any) -> Any:
    """The same config as plain dicts, lists and scalars (for a checkpoint, a YAML dump or a digest)."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


def _load(path: Path, parents: tuple[Path, ...]) -> tuple[dict[str, Any], Marks]:
    path = path.resolve()
    if path in parents:
        raise ConfigError(f"{BASE} must not lead back to a file that asks for it; got {path} again")
    data, marks = _parse(path)
    return _with_bases(data, marks, path, (*parents, path), ""), marks


def _parse(path: Path) -> tuple[dict[str, Any], Marks]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"config file cannot be read: {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config file is not UTF-8 text: {path} ({error.reason})") from error
    loader = _Loader(text)
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
    """Record each key's place; raise ConfigError on a key given twice in one mapping."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value in node.value:
            line = key_node.start_mark.line + 1
            name = str(key_node.value)
            if name in seen and name != "<<":
                place = f"{path}, line {line}: key {prefix}{name}"
                raise ConfigError(f"{place} was given already in line {seen[name]}; keep one")
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
    """Return ``data`` laid over its base, the same for each mapping inside; bases' marks are added."""
    base: dict[str, Any] = {}
    if BASE in data:
        asked = data[BASE]
        if not isinstance(asked, str):
            raise ConfigError(f"{marks[prefix + BASE]}: {BASE} must be a file name; got {asked!r}")
        base, base_marks = _load(_find_base(asked, path, marks[prefix + BASE]), parents)
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


def _find_base(asked: str, path: Path, place: str) -> Path:
    roots = [p.parent for p in path.parents if p.name == "cfgs"]
    tried = [folder / asked for folder in [path.parent, *roots, Path.cwd()]]
    for candidate in tried:
        if candidate.is_file():
            return candidate
    listing = "\n  ".join(str(p) for p in dict.fromkeys(tried))
    raise ConfigError(f"{place}: {BASE} {asked} was not found; looked for\n  {listing}")


def _set(cfg: EasyDict, key: str, text: str) -> None:
    *parents, last = key.split(".")
    node: Any = cfg
    for depth, part in enumerate(parents):
        if isinstance(node, dict) and part not in node and _is_optional(".".join(parents[: depth + 1])):
            node[part] = EasyDict()
        node = _child(node, part, key)
        if node is None:
            raise ConfigError(f"--set {key}: {part} holds no keys (it is null)")
    known = isinstance(node, dict) and last in node
    if not known and _is_optional(key) and isinstance(node, dict):
        node[last] = _value(key, text, None)
        return
    old = _child(node, last, key)
    new = _value(key, text, old)
    if isinstance(node, list):
        node[int(last)] = new
    else:
        node[last] = new


def _child(node: Any, part: str, key: str) -> Any:
    if isinstance(node, list) and part.isdigit() and int(part) < len(node):
        return node[int(part)]
    if isinstance(node, dict) and part in node:
        return node[part]
    names = (
        list(node) if isinstance(node, dict) else [f"0..{len(node) - 1}"] if isinstance(node, list) else []
    )
    names = [str(n) for n in dict.fromkeys([*names, *_optional_beside(key, part)])]
    close = difflib.get_close_matches(part.upper(), names, n=1) or difflib.get_close_matches(part, names, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    raise ConfigError(
        f"--set {key}: no such key {part!r}.{hint} Known here: {', '.join(map(str, names)) or 'none'}"
    )


def _optional_beside(key: str, part: str) -> list[str]:
    """The keys that --set may add in the mapping in which it looks for ``part`` of ``key``."""
    parts = key.split(".")
    above = parts[: parts.index(part)]
    known = [name.split(".") for name in OPTIONAL_KEYS]
    return [name[len(above)] for name in known if above and name[: len(above)] == above]


def _is_optional(key: str) -> bool:
    return any(key == known or known.startswith(key + ".") for known in OPTIONAL_KEYS)


def _value(key: str, text: str, old: Any) -> Any:
    if key in LIST_OF_NAMES:
        return _names(text)
    try:
        new = yaml.load(text, Loader=_Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: the value must be YAML; got {text!r}") from error
    if isinstance(old, list) and not isinstance(new, list):
        new = [yaml.load(part, Loader=_Loader) for part in text.split(",")]
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    scalar = isinstance(old, bool | int | float | str) and not (isinstance(old, str) or new is None)
    fits = type(new) is type(old) or {type(new), type(old)} == {int, float} or not scalar
    if not fits or (isinstance(old, dict) and not isinstance(new, dict | None)):
        raise ConfigError(f"--set {key}: the value must be {type(old).__name__} like {old!r}; got {text!r}")
    return EasyDict(new) if isinstance(new, dict) else new


def _names(text: str) -> list[str] | None:
    """`[vfe, "a.b"]` or `vfe,a.b` -> names; `null`, `[]` and the empty text -> nothing."""
    inner = text.strip()
    if inner in ("null", "None", "~"):
        return None
    if inner.startswith("[") and inner.endswith("]"):
        inner = inner[1:-1]
    return [part.strip().strip("\"'") for part in inner.split(",")] if inner.strip() else []


def _check(cfg: EasyDict) -> None:
    faults = []
    if "DATASET" not in cfg:  # a dataset config may stand alone
        faults += [_unknown(cfg, key) for key in cfg if key not in TOP_LEVEL_KEYS]
    for key, (wanted, test) in KEY_TYPES.items():
        value = _get(cfg, key)
        if value is not _ABSENT and not test(value):
            faults.append(f"{where(cfg, key) or 'config'}: {key} must be {wanted}; got {value!r}")
    if faults:
        raise ConfigError("\n".join(faults))


def _unknown(cfg: EasyDict, key: str) -> str:
    if any(optional == f"MODEL.{key}" for optional in OPTIONAL_KEYS):
        return f"{where(cfg, key)}: {key} belongs under MODEL; at the top level it has no effect"
    close = difflib.get_close_matches(str(key), TOP_LEVEL_KEYS, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"{where(cfg, key)}: unknown top-level key {key}{hint} (known: {', '.join(TOP_LEVEL_KEYS)})"


_ABSENT = object()


def _get(cfg: Mapping, key: str) -> Any:
    node: Any = cfg
    for part in key.split("."):
        if not isinstance(node, Mapping) or part not in node:
            return _ABSENT
        node = node[part]
    return node
