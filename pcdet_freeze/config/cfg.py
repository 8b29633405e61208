"""YAML -> EasyDict, with the file and line of every key, and `--set`. No global cfg.

`_BASE_CONFIG_: other.yaml` (in any mapping) starts that mapping from another file. It is looked for
beside the file, in the file's config root (the folder that holds its `cfgs/`), then in the working
directory, so OpenPCDet's own YAMLs work from anywhere. A relative `DATA_PATH` is looked for in the working
directory, then in the config root.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcdet_freeze.config.easy_dict import EasyDict
from pcdet_freeze.config.find import find_config
from pcdet_freeze.config.schema import OptimizationSettings, TopLevel
from pcdet_freeze.config.yaml_files import Marks, config_roots, load, read_yaml
from pcdet_freeze.errors import ConfigError
from pcdet_freeze.utils.settings.faults import place_of, raise_faults
from pcdet_freeze.utils.settings.names import did_you_mean
from pcdet_freeze.utils.settings.rules import is_union, takes_names, type_word
from pcdet_freeze.utils.settings.sections import SETTABLE, fields_of, read_section


def cfg_from_yaml_file(path: str | Path) -> EasyDict:
    """Read a config with its bases.

    Args:
        path: a YAML file, relative to the working directory or absolute, or the name of a packaged config.

    Returns:
        EasyDict; `where(cfg, "MODEL.VFE")` is the file and line of a key.

    Raises:
        ConfigError: missing file, YAML that does not parse, a duplicate key, an unknown top-level key,
            a value of the wrong type in OPTIMIZATION or at the top level; the message names file and line.
    """
    cfg = load_cfg(path)
    raise_faults(cfg_faults(cfg), cfg)
    return cfg


def load_cfg(path: str | Path, overrides: Sequence[str] = ()) -> EasyDict:
    """Read a config and change the keys of ``overrides``; the caller checks it.

    Args:
        path: see :func:`cfg_from_yaml_file`.
        overrides: the words of ``--set``.
    """
    path = find_config(path)
    data, marks = load(path)
    _find_data(data.get("DATA_CONFIG", data), path)
    cfg = EasyDict(data)
    object.__setattr__(cfg, "_marks", {"": str(path), **marks})
    object.__setattr__(cfg, "_file", path.resolve())
    apply_overrides(overrides, cfg)
    return cfg


def _find_data(data_cfg: Any, path: Path) -> None:
    """Resolve a relative DATA_PATH in the config root where the working directory does not have it.

    The sets of a joined one (DATASETS) have a DATA_PATH each.
    """
    members = data_cfg.get("DATASETS") if isinstance(data_cfg, dict) else None
    for member in members.values() if isinstance(members, dict) else ():
        _find_data(member.get("DATA_CONFIG") if isinstance(member, dict) else None, path)
    asked = data_cfg.get("DATA_PATH") if isinstance(data_cfg, dict) else None
    if isinstance(asked, str) and not Path(asked).exists():
        found = [root / asked for root in config_roots(path.resolve()) if (root / asked).exists()]
        data_cfg["DATA_PATH"] = str(found[0].resolve()) if found else asked


def cfg_faults(cfg: EasyDict, needed: Sequence[str] = ()) -> list[str]:
    """What is wrong at the top level and with values in OPTIMIZATION; a data set's config may stand alone."""
    missing = [f"{key} is required, but missing" for key in needed if key not in cfg]
    if "DATASET" in cfg and not needed:
        return []
    misplaced = [str(key) for key in cfg if key in _model_keys()]
    rest = {key: value for key, value in cfg.items() if key not in misplaced}
    _, faults = read_section(TopLevel, rest, "", partial=True)
    optim = cfg.get("OPTIMIZATION")
    if isinstance(optim, Mapping):
        known = {key: value for key, value in optim.items() if key in fields_of(OptimizationSettings)}
        faults += read_section(OptimizationSettings, known, "OPTIMIZATION", partial=True)[1]
    return [
        *missing,
        *(f"{key} belongs under MODEL; at the top level it has no effect" for key in misplaced),
        *faults,
    ]


def cfg_from_list(items: Sequence[str], cfg: EasyDict) -> None:
    """Apply `--set KEY VALUE KEY VALUE ...` to ``cfg`` in place.

    Values are YAML (`0.01`, `True`, `"[1, 2]"`); a key that holds a list also takes `a,b`. A key must exist
    already, or be an optional key of OPTIMIZATION, of MODEL.FREEZE or of another settable section.

    Raises:
        ConfigError: an option among the words, an odd number of words, an unknown key (with the nearest known
            one), a wrong type. Each pair is checked before it changes anything.
    """
    apply_overrides(items, cfg)
    raise_faults(cfg_faults(cfg), cfg)


def apply_overrides(items: Sequence[str], cfg: EasyDict) -> None:
    """As :func:`cfg_from_list`, without the check of the whole config."""
    options = [item for item in items if item.startswith("--")]
    if options:
        raise ConfigError(
            f"--set consumes all remaining arguments, but {options[0]} follows it. Put --set last."
        )
    if len(items) % 2:
        raise ConfigError(
            f"--set takes pairs KEY VALUE; got {len(items)} words: {' '.join(items)}. "
            'Quote a value that contains spaces: --set KEY "[a, b]"'
        )
    for key, text in zip(items[::2], items[1::2], strict=True):
        _set(cfg, key, text)
        marks = getattr(cfg, "_marks", None)
        if marks is not None:
            marks[key] = "--set"


def where(cfg: Mapping, key: str) -> str:
    """File and line of a dotted key (or of the nearest parent that has one); "" where it is not known."""
    return place_of(cfg, key)


def locate(cfg: Mapping, message: str) -> str:
    """Return ``message`` with the file and line of the key that it names, of several the deepest.

    Keys below MODEL are known without it, too: FREEZE.EVAL. A message with a place in it is left alone.
    """
    marks: Marks = getattr(cfg, "_marks", {})
    keys = re.findall(r"\b[A-Z][A-Z0-9_]+(?:\.[A-Za-z0-9_]+|\[\d+\])*", message)
    keys = [f"MODEL.{key}" if f"MODEL.{key.partition('.')[0]}" in marks else key for key in keys]
    places = {key: where(cfg, key) for key in keys if key.partition(".")[0] in marks}
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
            raise ConfigError(f"--set {key}: {part} is null")
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
    names = list(node) if isinstance(node, dict) else []
    known = [f"0..{len(node) - 1}"] if isinstance(node, list) else list(map(str, names))
    known = list(dict.fromkeys([*known, *_optional_beside(key, part)]))
    near = did_you_mean(part, known) or (_elsewhere(node, key) if key.split(".")[0] == part else "")
    raise ConfigError(f"--set {key}: no such key {part!r}{near} (known: {', '.join(known) or 'none'})")


def _elsewhere(cfg: Any, key: str) -> str:
    """The hint for a key of a model's config in one of a data set (DATA_CONFIG.DATA_PATH), or the reverse."""
    first, _, rest = key.partition(".")
    if not isinstance(cfg, dict):
        return ""
    if rest.partition(".")[0] in cfg:
        return f"; did you mean {rest}?"
    sections = [name for name, section in cfg.items() if isinstance(section, dict)]
    places = [f"{name}.{key}" for name in sections if first in cfg[name] or _is_optional(f"{name}.{key}")]
    return f"; did you mean {' or '.join(places)}?" if places else ""


def _optional_keys() -> dict[str, Any]:
    """The keys that --set may add although the config does not have them -> their types."""
    found: dict[str, Any] = {"HOOK": Any, "EVALUATION": Any}
    for section, classes in SETTABLE.items():
        for cls in classes:
            _add_optional(cls, section, found)
    return found


def _add_optional(cls: type, section: str, found: dict[str, Any], nested: bool = False) -> None:
    for key, field in fields_of(cls).items():
        if field.default is dataclasses.MISSING and not nested:
            continue
        found[f"{section}.{key}"] = field.kind
        for inner in typing.get_args(field.kind) if is_union(field.kind) else ():
            if isinstance(inner, type) and dataclasses.is_dataclass(inner):
                _add_optional(inner, f"{section}.{key}", found, nested=True)


def _model_keys() -> set[str]:
    """Optional keys of MODEL that have no effect at the top level."""
    return {key.split(".")[1] for key in _optional_keys() if key.startswith("MODEL.")}


def _optional_beside(key: str, part: str) -> list[str]:
    """The keys that --set may add in the mapping in which it looks for ``part`` of ``key``."""
    parts = key.split(".")
    above = parts[: parts.index(part)]
    known = [name.split(".") for name in _optional_keys()]
    return [name[len(above)] for name in known if above and name[: len(above)] == above and name != above]


def _is_optional(key: str) -> bool:
    return key in _optional_keys()


def _is_list_of_names(key: str) -> bool:
    return key == "CLASS_NAMES" or takes_names(_optional_keys().get(key))


def _value(key: str, text: str, old: Any) -> Any:
    if _is_list_of_names(key):
        return _names(text)
    try:
        new = _parsed(text)
        if isinstance(old, list) and not isinstance(new, list):
            new = [_parsed(part) for part in text.split(",")]
    except ConfigError as error:
        raise ConfigError(f"--set {key}: the value must be YAML; got {text[:200]!r} ({error})") from error
    if isinstance(old, float) and isinstance(new, int) and not isinstance(new, bool):
        new = float(new)
    scalar = isinstance(old, bool | int | float | str) and not (isinstance(old, str) or new is None)
    fits = type(new) is type(old) or {type(new), type(old)} == {int, float} or not scalar
    if not fits or (isinstance(old, dict) and not isinstance(new, dict | None)):
        raise ConfigError(f"--set {key}: the value must be {type_word(old)} like {old!r}; got {text!r}")
    return EasyDict(new) if isinstance(new, dict) else new


def _parsed(text: str) -> Any:
    """The value of YAML on the command line; None for no text, and for ``None``, as in OpenPCDet's --set."""
    return read_yaml(text, "--set")[0] if text.strip() not in ("", "None") else None


def _names(text: str) -> Any:
    """`[vfe, "a.b"]` or `vfe,a.b` -> names; `null`, `[]` and the empty text -> nothing.

    A mapping, a number, a tuple and the like stay what they are: the reader of the section refuses them.
    """
    text = text.strip()
    try:
        value = _parsed(text)
    except ConfigError:  # globs that YAML reads in another way: *, [a.*, b.[0-2]]
        value = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if not isinstance(value, str) or value.startswith("("):
        return value
    parts = [part.strip().strip("\"'") for part in value.split(",")]
    return None if value == "None" else parts if parts[-1] else parts[:-1]
