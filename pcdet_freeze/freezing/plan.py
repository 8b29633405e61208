"""MODEL.NOT_TRAIN_IN_MULTI_TASK and MODEL.FREEZE as one checked value.

Every fault of the config is collected and raised once. What a plan means for a given model is worked out by
:mod:`pcdet_freeze.freezing.resolve`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.cache_config import CacheOptions, read_cache
from pcdet_freeze.freezing.schedule_config import ScheduleEntry, read_schedule
from pcdet_freeze.utils.names import nearest

KEY = "NOT_TRAIN_IN_MULTI_TASK"
BLOCK = "FREEZE"
RULE = f"MODEL.{KEY} must be a list of module names"
EXAMPLE = f"{KEY}: [vfe, backbone_2d.blocks]"

DEFAULTS: dict[str, Any] = {
    "PARAMETERS": True,
    "EVAL": (),
    "SHARED": "error",
    "ALLOW_RANDOM": False,
    "IGNORE": (),
    "FUSE": True,
    "PREFIX_DTYPE": "float32",
    "CHANNELS_LAST": False,
    "COMPILE": False,
    "CACHE": None,
    "SCHEDULE": (),
}


@dataclass(frozen=True)
class FreezePlan:
    """What to freeze and how. Falsy when nothing is named.

    Raises FreezeError, with all faults at once, for entries or options that cannot mean anything.
    """

    entries: tuple[str, ...] = ()
    """Dotted paths from the detector, as written; globs within a segment; ``!path`` exempts."""
    parameters: bool = True
    """False: parameters go on training; only layers are held (norm statistics, dropout)."""
    eval: tuple[str, ...] = ()
    """Names whose own code branches on ``self.training``: held in eval with all that is inside."""
    shared: str = "error"
    """``freeze``: a tensor or module that a live path uses too is frozen for that user as well."""
    allow_random: bool | tuple[str, ...] = False
    """True, or names: weights that no checkpoint supplied may be frozen."""
    ignore: tuple[str, ...] = ()
    """Buffers (or modules, for all their buffers) that the certificate leaves out."""
    schedule: tuple[ScheduleEntry, ...] = ()
    """What trains later, in the order of time. ``freeze`` leaves it to the engine."""
    fuse: bool | str = True
    """Training forwards compute layers as one where that is exact but for rounding; ``force``: under autocast
    and TF32 too. False: every layer by itself."""
    prefix_dtype: str = "float32"
    """``bfloat16``: what the frozen prefix computes in, in training forwards."""
    channels_last: bool = False
    """Maps inside the frozen prefix lie channel by channel in memory, in training forwards."""
    compile: bool = False
    """torch.compile the frozen prefix, for training forwards."""
    cache: CacheOptions | None = None
    """Where and how the frozen prefix's outputs are kept from epoch to epoch."""

    def __post_init__(self) -> None:
        faults = entry_faults(self.entries)
        _raise(faults)
        object.__setattr__(self, "entries", tuple(self.entries))
        for name in ("eval", "ignore"):
            faults += _list_faults(name.upper(), getattr(self, name))
        if self.shared not in ("error", "freeze"):
            faults.append(f"{BLOCK}.SHARED must be 'error' or 'freeze'; got {self.shared!r}")
        if not isinstance(self.parameters, bool):
            faults.append(f"{BLOCK}.PARAMETERS must be True or False; got {self.parameters!r}")
        if not isinstance(self.allow_random, bool):
            faults += _list_faults("ALLOW_RANDOM", self.allow_random, "True, False or ")
        for key in ("FUSE", "PREFIX_DTYPE", "CHANNELS_LAST", "COMPILE"):
            faults += option_faults(key, getattr(self, key.lower()))
        cache, cache_faults = read_cache(self.cache)
        object.__setattr__(self, "cache", cache)
        if cache is not None and not self.parameters:
            cache_faults.append(
                f"{BLOCK}.CACHE keeps what frozen modules put out, but with PARAMETERS: False they train: "
                "write CACHE: null"
            )
        phases, schedule_faults = read_schedule(self.schedule)
        object.__setattr__(self, "schedule", phases)
        _raise(faults + cache_faults + schedule_faults + self._idle_schedule())

    def _idle_schedule(self) -> list[str]:
        """Faults of a schedule that cannot do what it says."""
        faults = []
        if self.schedule and not self.entries:
            faults.append(f"{BLOCK}.SCHEDULE lets frozen parts train, but MODEL.{KEY} names none: empty both")
        if not self.parameters and any(phase.lr_scale != 1 for phase in self.schedule):
            faults.append(
                f"{BLOCK}.SCHEDULE: LR_SCALE is for parameters that start to train, but with PARAMETERS: "
                "False all of them train from the start: leave it out"
            )
        return faults

    def __bool__(self) -> bool:
        return bool(self.entries)

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> FreezePlan:
        """Read a whole config, or its MODEL part. An absent, null or empty list gives an empty plan."""
        if not isinstance(cfg, Mapping):
            raise FreezeError(f"a config must be a mapping; got {type(cfg).__name__}: {cfg!r}")
        model = cfg.get("MODEL") if "MODEL" in cfg else cfg
        faults = _misplaced(cfg)
        if model is None:
            model = {}
        if not isinstance(model, Mapping):
            raise FreezeError(f"MODEL must be a mapping; got {type(model).__name__}: {model!r}")
        faults += _misspelled(model)
        entries = model.get(KEY)
        entries = [] if entries is None else entries
        faults += entry_faults(entries)
        options, option_faults = read_block(model.get(BLOCK))
        faults += option_faults
        _raise(faults)
        return cls(tuple(entries), **options)

    @classmethod
    def of(cls, names: FreezePlan | Sequence[str] | None) -> FreezePlan:
        """A plan as it is, or one made from a list of names."""
        if isinstance(names, FreezePlan):
            return names
        return cls(() if names is None else names)  # type: ignore[arg-type]  # checked by __post_init__


def entry_faults(entries: object) -> list[str]:
    """What is wrong with a list of entries: it must be a list (or tuple) of non-empty strings."""
    if isinstance(entries, str | bytes) or not isinstance(entries, list | tuple):
        hint = f"write [{entries}]" if isinstance(entries, str) and entries.strip() else f"write {EXAMPLE}"
        return [f"{RULE}; got {type(entries).__name__} {entries!r}: {hint}"]
    faults = []
    for index, entry in enumerate(entries):
        if not isinstance(entry, str):
            faults.append(f"{RULE}; element {index} is {type(entry).__name__} {entry!r}: write {EXAMPLE}")
        elif not entry.removeprefix("!").strip():
            faults.append(f"{RULE}; element {index} is an empty name, {entry!r}: remove it or write a name")
    return faults


def read_block(block: object) -> tuple[dict[str, Any], list[str]]:
    """MODEL.FREEZE -> (options for FreezePlan, faults)."""
    if block is None:
        return {}, []
    if not isinstance(block, Mapping):
        return {}, [f"MODEL.{BLOCK} must be a mapping; got {type(block).__name__} {block!r}"]
    faults = [_unknown_option(key) for key in block if key not in DEFAULTS]
    options: dict[str, Any] = {}
    for key, default in DEFAULTS.items():
        value = block.get(key, default)
        value_faults = option_faults(key, value)
        faults += value_faults
        if not value_faults:
            lists = ("EVAL", "IGNORE", "SCHEDULE")
            options[key.lower()] = tuple(value or ()) if key in lists else value
    if isinstance(options.get("allow_random"), list | tuple):
        options["allow_random"] = tuple(options["allow_random"])
    return options, faults


def option_faults(key: str, value: object) -> list[str]:
    """What is wrong with one value of the FREEZE block."""
    if key in ("PARAMETERS", "CHANNELS_LAST", "COMPILE") and not isinstance(value, bool):
        return [f"{BLOCK}.{key} must be True or False; got {value!r}"]
    if key == "PREFIX_DTYPE" and value not in ("float32", "bfloat16"):
        return [f"{BLOCK}.PREFIX_DTYPE must be float32 or bfloat16; got {value!r}"]
    if key == "SHARED" and value not in ("error", "freeze"):
        return [f"{BLOCK}.SHARED must be 'error' or 'freeze'; got {value!r}"]
    if key == "FUSE" and not isinstance(value, bool) and value != "force":
        return [f"{BLOCK}.FUSE must be True, False or 'force'; got {value!r}"]
    if key in ("EVAL", "IGNORE"):
        return _list_faults(key, [] if value is None else value)
    if key == "ALLOW_RANDOM" and not isinstance(value, bool):
        return _list_faults(key, value, "True, False or ")
    if key == "CACHE":
        return read_cache(value)[1]
    return read_schedule(value)[1] if key == "SCHEDULE" else []


def _list_faults(key: str, value: object, also: str = "") -> list[str]:
    if isinstance(value, list | tuple) and all(isinstance(item, str) and item.strip() for item in value):
        return []
    return [f"{BLOCK}.{key} must be {also}a list of names; got {value!r}: write {key}: [name]"]


def _unknown_option(key: object) -> str:
    close = nearest(str(key).upper(), DEFAULTS, 1)
    hint = f"; did you mean {close[0]}?" if close else ""
    return f"MODEL.{BLOCK} knows {', '.join(DEFAULTS)}; got {key!r}{hint}"


def _misplaced(cfg: Mapping[str, Any]) -> list[str]:
    """Keys beside MODEL that belong under it: they would be passed over without a word."""
    if "MODEL" not in cfg:
        return []
    return [f"{key} belongs under MODEL; found beside it" for key in (KEY, BLOCK) if key in cfg]


def _misspelled(model: Mapping[str, Any]) -> list[str]:
    """Keys that are nearly the list's: the run would train everything."""
    return [
        f"MODEL.{key} looks like MODEL.{KEY} misspelled: write MODEL.{KEY}"
        for key in model
        if isinstance(key, str) and key != KEY and get_close_matches(_letters(key), [_letters(KEY)], 1, 0.85)
    ]


def _letters(key: str) -> str:
    return key.upper().replace("_", "").replace("-", "")


def _raise(faults: list[str]) -> None:
    if faults:
        raise FreezeError(faults[0] if len(faults) == 1 else "\n".join(["the freeze list:", *faults]))
