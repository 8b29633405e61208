"""YAML -> EasyDict, with the file and line of every key at hand; `--set` on top. No global cfg.

`_BASE_CONFIG_: other.yaml` (in any mapping) starts that mapping from another file. It is looked for
beside the file, in the file's config root (the folder that holds its `cfgs/`), then in the working
directory, so OpenPCDet's own YAMLs work from anywhere. A relative `DATA_PATH` is looked for in the working
directory, then in the config root.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from easydict import EasyDict

from pcdet_freeze.config.find import find_config
from pcdet_freeze.config.schema import KEY_TYPES, LIST_OF_NAMES, OPTIONAL_KEYS, TOP_LEVEL_KEYS
from pcdet_freeze.config.yaml_files import Loader, Marks, config_roots, load
from pcdet_freeze.errors import ConfigError


def cfg_from_yaml_file(path: str | Path) -> EasyDict:
    """Read a config with its bases.

    Args:
        path: a YAML file, relative to the working directory or absolute, or the name of a packaged config.
    Returns:
        EasyDict; `where(cfg, "MODEL.VFE")` tells the file and line of a key.
    Raises:
        ConfigError: missing file, YAML that does not parse, a duplicate key, an unknown top-level key,
            a value of the wrong type; the message names file and line.
    """
    path = find_config(path)
    data, marks = load(path)
    _find_data(data.get("DATA_CONFIG", data), path)
    cfg = EasyDict(data)
    object.__setattr__(cfg, "_marks", marks)
    object.__setattr__(cfg, "_file", path.resolve())
    _check(cfg)
    return cfg


def _find_data(data_cfg: Any, path: Path) -> None:
    """A relative DATA_PATH that leads nowhere from here may lead somewhere from the config root."""
    asked = data_cfg.get("DATA_PATH") if isinstance(data_cfg, dict) else None
    if isinstance(asked, str) and not Path(asked).exists():
        found = [root / asked for root in config_roots(path.resolve()) if (root / asked).exists()]
        data_cfg["DATA_PATH"] = str(found[0].resolve()) if found else asked


def cfg_from_list(items: Sequence[str], cfg: EasyDict) -> None:
    """Apply `--set KEY VALUE KEY VALUE ...` to ``cfg`` in place.

    Values are YAML (`0.01`, `True`, `"[1, 2]"`); a key that holds a list also takes `a,b`. A key must exist
    already, or be one of the freeze keys.

    Raises:
        ConfigError: an option among the words, an odd number of them, an unknown key (with the nearest known
            one), a wrong type. All checks of one pair precede its change.
    """
    options = [item for item in items if item.startswith("--")]
    if options:
        raise ConfigError(f"--set takes all that follows it; got {options[0]} there: put --set last")
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
    """Return ``message`` with the file and line of the key that it names, of several the deepest.

    Keys below MODEL are known without it, too: FREEZE.EVAL.
    """
    marks: Marks = getattr(cfg, "_marks", {})
    keys = re.findall(r"\b[A-Z][A-Z0-9_]+(?:\.[A-Za-z0-9_]+)*", message)
    keys = [f"MODEL.{key}" if f"MODEL.{key.partition('.')[0]}" in marks else key for key in keys]
    places = {key: place for key in keys if (place := where(cfg, key))}
    if not places or any(place in message for place in places.values()):
        return message
    key = max(places, key=lambda key: key.count("."))
    return f"{message}\n  ({key}: {places[key]})"


def plain(value: Any) -> Any:
    """The same config as plain dicts, lists and scalars (for a checkpoint, a YAML dump or a digest)."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value


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
        new = yaml.load(text, Loader=Loader)  # a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {key}: the value must be YAML; got {text!r}") from error
    if isinstance(old, list) and not isinstance(new, list):
        new = [yaml.load(part, Loader=Loader) for part in text.split(",")]
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    scalar = isinstance(old, bool | int | float | str) and not (isinstance(old, str) or new is None)
    fits = type(new) is type(old) or {type(new), type(old)} == {int, float} or not scalar
    if not fits or (isinstance(old, dict) and not isinstance(new, dict | None)):
        raise ConfigError(f"--set {key}: the value must be {type(old).__name__} like {old!r}; got {text!r}")
    return EasyDict(new) if isinstance(new, dict) else new


def _names(text: str) -> Any:
    """`[vfe, "a.b"]` or `vfe,a.b` -> names; `null`, `[]` and the empty text -> nothing.

    A mapping, a number and the like stay what they are: whoever reads the list says what it must be.
    """
    text = text.strip()
    try:
        value = yaml.load(text, Loader=Loader)
    except yaml.YAMLError:  # globs that YAML reads in another way: *, [a.*, b.[0-2]]
        value = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not isinstance(value, str):
        return value
    parts = [part.strip().strip("\"'") for part in value.split(",")]
    return None if value == "None" else parts if parts[-1] else parts[:-1]


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
