"""MODEL.NOT_TRAIN_IN_MULTI_TASK and MODEL.FREEZE as one checked value, parsed once a run.

A new key of MODEL.FREEZE is one field of :class:`FreezeOptions`: its type and rules are what the config
reader checks, its default is the default of the key, and ``--set`` takes it. What a plan means for a given
model is worked out by :mod:`pcdet_freeze.freezing.entries.resolve` and :mod:`pcdet_freeze.freezing.schedule`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.freezing.entries.list_notation import read_keys
from pcdet_freeze.utils.settings.faults import raise_faults
from pcdet_freeze.utils.settings.names import nearest
from pcdet_freeze.utils.settings.rules import Count, Rule, above
from pcdet_freeze.utils.settings.sections import Section, fields_of, read_section, settable

KEY = "NOT_TRAIN_IN_MULTI_TASK"
BLOCK = "FREEZE"
SCHEDULE_KEY = f"MODEL.{BLOCK}.SCHEDULE"
RULE = f"MODEL.{KEY} must be a list of module names"
EXAMPLE = f"{KEY}: [vfe, backbone_2d.blocks]"

Dtype = Literal["float32", "bfloat16"]
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kKMGT])B")
"""a number of bytes, in powers of 1000"""
Size = Annotated[str, Rule("a size such as 80GB", lambda text: SIZE.fullmatch(text) is not None)]


def _is_name(value: str) -> bool:
    """Whether ``value`` may name a module; parts of a tuple and the word None come from Python's notation."""
    name = value.removeprefix("!").strip()
    return bool(name) and name != "None" and not set(name) & set("()")


Entries = Annotated[
    tuple[Annotated[str, Rule("a module name", _is_name, many="module names")], ...],
    Rule("a list of module names", advice=EXAMPLE),
]
Names = tuple[Annotated[str, Rule("a name", _is_name, many="names")], ...]
Parts = Annotated[
    tuple[Annotated[str, Rule("a module name without '!'", lambda v: _is_name(v) and v[0] != "!")], ...],
    Rule("a list of module names", bool, advice="TRAIN: [backbone_2d.blocks]"),
]
Epoch = Annotated[
    int,
    Rule(
        "a whole number of finished epochs, 1 or more",
        lambda value: value >= 1,
        advice="EPOCH: 1, or take what trains from the start off the list",
    ),
]


@dataclass(frozen=True)
class ScheduleEntry(Section):
    """From one epoch on, named parts train."""

    example: ClassVar[str] = "{EPOCH: 10, TRAIN: [backbone_2d.blocks], LR_SCALE: 0.1}"
    many: ClassVar[str] = f"phases such as {example}"

    epoch: Epoch
    """Finished epochs after which it begins."""
    train: Parts
    """Frozen modules, or parts of them, as in the list."""
    lr_scale: Annotated[float, above(0)] = 1.0
    """Their learning rate is this multiple of the others'."""

    def to_plain(self) -> dict[str, Any]:
        """Return the phase as it is written in a config."""
        return {"EPOCH": self.epoch, "TRAIN": list(self.train), "LR_SCALE": self.lr_scale}


@dataclass(frozen=True)
class CacheOptions(Section):
    """Where the outputs of the frozen prefix are kept, and how (F7)."""

    example: ClassVar[str] = "{FOLDER: folder, VARIANTS: 4, DTYPE: float32, LIMIT: 80GB}"
    short_key: ClassVar[str] = "FOLDER"

    folder: Annotated[str, Rule("a folder", lambda value: bool(value.strip()), advice="FOLDER: path")]
    """each key has a folder of its own in it"""
    variants: Count | None = None
    """how many random draws of each sample are kept; None: the data must not be random"""
    dtype: Dtype = "float32"
    """what float32 values are stored as"""
    compress: Literal["zstd", "lz4", "none"] = "zstd"
    """how rows are compressed, without loss"""
    limit: Size | None = None
    """the size at which no more samples are added; the others are computed"""

    @property
    def limit_bytes(self) -> int | None:
        """``limit`` in bytes."""
        found = SIZE.fullmatch(self.limit or "")
        return int(float(found[1]) * 1000 ** (1 + "KMGT".index(found[2].upper()))) if found else None


@dataclass(frozen=True, kw_only=True)
class FreezeOptions(Section):
    """Keys of MODEL.FREEZE."""

    example: ClassVar[str] = "{EVAL: [backbone_3d], FUSE: False}"

    parameters: bool = True
    """False: parameters go on training; only layers are locked (norm statistics, dropout)."""
    eval: Names = ()
    """Names whose own code branches on ``self.training``: locked in eval mode with all that is inside."""
    shared: Literal["error", "freeze"] = "error"
    """``freeze``: a tensor or module that a trainable module uses too is frozen for that user as well."""
    allow_random: bool | Names = False
    """True, or names: weights that no checkpoint supplied may be frozen."""
    ignore: Names = ()
    """Buffers (or modules, for all their buffers) that the certificate leaves out."""
    train_dropped: bool = False
    """In OpenPCDet only: True adds the parameters that its adam_onecycle drops to the optimizer."""
    fuse: bool | Literal["force"] = True
    """Fold BN and other layers in training forwards, exact but for rounding; ``force``: under autocast
    too. False: every layer by itself."""
    skip_empty: bool = True
    """Compute maps of the frozen prefix only where pillars reach, on a CPU, in training forwards."""
    prefix_dtype: Dtype = "float32"
    """Data type in which the frozen prefix computes, in training forwards."""
    channels_last: bool = False
    """Feature maps inside the frozen prefix are channels-last in memory, in training forwards."""
    compile: bool | Literal["graphs"] = False
    """torch.compile the frozen prefix, for training forwards; ``graphs``: as CUDA graphs too."""
    cache: CacheOptions | None = None
    """Where and how the outputs of the frozen prefix are kept from epoch to epoch."""
    lr_scale: dict[str, Annotated[float, above(0)]] | None = field(default=None, hash=False)
    """Module that trains -> multiple of the learning rate, from the first epoch on. ``freeze`` leaves it to
    the engine."""
    schedule: tuple[ScheduleEntry, ...] = ()
    """What trains later, in order of time. ``freeze`` leaves it to the engine."""

    def faults(self) -> Iterator[str]:
        """Options that do not fit each other."""
        if self.cache is not None and not self.parameters:
            yield (
                "CACHE keeps the outputs of frozen modules, but with PARAMETERS: False they train: "
                "write CACHE: null"
            )
        for number, (earlier, later) in enumerate(pairwise(self.schedule), 1):
            if later.epoch < earlier.epoch:
                yield (
                    f"SCHEDULE[{number}].EPOCH must not be below that of the phase before; got EPOCH "
                    f"{later.epoch} behind EPOCH {earlier.epoch}: sort the phases"
                )
        for number, phase in enumerate(self.schedule):
            if not self.parameters and phase.lr_scale != 1:
                yield (
                    f"SCHEDULE[{number}].LR_SCALE is for parameters that start to train, but with "
                    "PARAMETERS: False all of them train from the start: leave it out"
                )


DEFAULTS: dict[str, Any] = {key: field.default for key, field in fields_of(FreezeOptions).items()}
"""keys of MODEL.FREEZE and their defaults"""


@settable("MODEL")
@dataclass(frozen=True)
class FreezeKeys(Section):
    """The two keys of MODEL that are the freeze's."""

    other_keys: ClassVar[bool] = True

    not_train_in_multi_task: Entries = ()
    freeze: FreezeOptions | None = None

    def faults(self) -> Iterator[str]:
        """A schedule without a list."""
        if self.freeze is not None and self.freeze.schedule and not self.not_train_in_multi_task:
            yield f"{BLOCK}.SCHEDULE lets frozen parts train, but MODEL.{KEY} names none: empty both"


@dataclass(frozen=True)
class FreezePlan(FreezeOptions):
    """What to freeze and how. Falsy when nothing is named.

    Raises FreezeError, with all faults at once, for entries or options that are not valid.
    """

    entries: tuple[str, ...] = ()
    """Dotted paths from the detector; globs within a segment; ``!path`` exempts."""
    notes: tuple[str, ...] = field(default=(), compare=False, repr=False, kw_only=True)
    """What was read in another way than it was written."""

    def __post_init__(self) -> None:
        block = {key: getattr(self, field.name) for key, field in fields_of(FreezeOptions).items()}
        model, notes = read_keys({KEY: self.entries, BLOCK: block}, KEY, BLOCK)
        object.__setattr__(self, "notes", (*self.notes, *notes))
        keys, faults = read_section(FreezeKeys, model, "MODEL")
        if keys is None or keys.freeze is None:
            raise_faults(faults, error=FreezeError)
            return
        object.__setattr__(self, "entries", keys.not_train_in_multi_task)
        for option in fields(FreezeOptions):  # lists become tuples: a plan is hashable
            object.__setattr__(self, option.name, getattr(keys.freeze, option.name))

    def __bool__(self) -> bool:
        return bool(self.entries)

    @classmethod
    def read(cls, cfg: object) -> tuple[FreezePlan, list[str]]:
        """Read a whole config, or its MODEL part: (plan, every fault). With faults the plan is empty."""
        if not isinstance(cfg, Mapping):
            return cls(), [f"a config must be a mapping; got {type(cfg).__name__}: {cfg!r}"]
        model = (cfg.get("MODEL") or {}) if "MODEL" in cfg else cfg
        if not isinstance(model, Mapping):
            return cls(), [f"MODEL must be a mapping; got {type(model).__name__}: {model!r}"]
        model, notes = read_keys(model, KEY, BLOCK)
        keys, faults = read_section(FreezeKeys, model, "MODEL")
        faults = [*_misplaced(cfg), *_misspelled(model), *faults]
        if keys is None or faults:
            return cls(), faults
        return cls(keys.not_train_in_multi_task, notes=notes, **vars(keys.freeze or FreezeOptions())), []

    @classmethod
    def from_cfg(cls, cfg: Mapping[str, Any]) -> FreezePlan:
        """Read a whole config, or its MODEL part. An absent, null or empty list gives an empty plan.

        Raises FreezeError with every fault, and with file and line where ``cfg`` knows them.
        """
        plan, faults = cls.read(cfg)
        raise_faults(faults, cfg, FreezeError)
        return plan

    def openpcdet_only(self) -> list[str]:
        """Faults of a plan for the trainer of this package: keys that only the plugin for OpenPCDet needs."""
        if not self.train_dropped:
            return []
        return [
            f"MODEL.{BLOCK}.TRAIN_DROPPED is for OpenPCDet, whose adam_onecycle drops parameters. In this "
            "trainer every trainable parameter is in the optimizer: remove the key"
        ]

    @classmethod
    def of(cls, names: FreezePlan | Sequence[str] | None) -> FreezePlan:
        """A plan as it is, or one made from a list of names."""
        if isinstance(names, FreezePlan):
            return names
        return cls(() if names is None else names)  # type: ignore[arg-type]  # checked by __post_init__


def read_schedule(value: object) -> tuple[tuple[ScheduleEntry, ...], list[str]]:
    """Read a schedule, as plain data, on its own: (its phases, every fault)."""
    options, faults = read_section(FreezeOptions, {"SCHEDULE": value}, f"MODEL.{BLOCK}")
    return (() if options is None else options.schedule), faults


def _misplaced(cfg: Mapping[str, Any]) -> list[str]:
    """Keys beside MODEL that belong under it: they would be ignored without a message."""
    if "MODEL" not in cfg:
        return []
    return [
        f"{key} belongs under MODEL; at the top level it has no effect" for key in (KEY, BLOCK) if key in cfg
    ]


def _misspelled(model: Mapping[str, Any]) -> list[str]:
    """Keys that are nearly the list's: the run would train everything."""
    return [
        f"MODEL.{key} looks like MODEL.{KEY} misspelled: write MODEL.{KEY}"
        for key in model
        if isinstance(key, str) and key != KEY and nearest(_letters(key), [_letters(KEY)], 1, 0.85)
    ]


def _letters(key: str) -> str:
    return key.upper().replace("_", "").replace("-", "")
