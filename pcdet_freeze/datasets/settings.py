"""DATA_CONFIG as dataclasses: the keys that all data sets have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar

from pcdet_freeze.datasets.point_features import EncodingSettings
from pcdet_freeze.utils.settings.rules import Key, Name, Place, Rule, Share, at_least
from pcdet_freeze.utils.settings.sections import Section, settable

T = TypeVar("T")


@dataclass(frozen=True)
class Modes(Section, Generic[T]):
    """A value for training and one for everything else."""

    lower_keys: ClassVar[bool] = True
    example: ClassVar[str] = "{train: ..., test: ...}"

    train: T
    test: T

    def of(self, training: bool) -> T:
        """Return the value of the mode."""
        return self.train if training else self.test


def _is_range(limits: Sequence[float]) -> bool:
    return len(limits) == 6 and all(low < high for low, high in zip(limits[:3], limits[3:], strict=True))


Range = Annotated[
    tuple[Place, ...],
    Rule("six numbers [x_min, y_min, z_min, x_max, y_max, z_max] with min < max, in metres", _is_range),
]


@settable("DATA_CONFIG")
@dataclass(frozen=True, kw_only=True)
class DataSettings(Section):
    """Keys of DATA_CONFIG that every data set has; a data set adds its own in its ``Settings``."""

    point_cloud_range: Range
    point_feature_encoding: EncodingSettings
    dataset: Name | None = None
    data_path: str | None = None
    info_root: str | None = None
    """folder of info files and database, where it is not DATA_PATH"""
    data_augmentor: Any = None
    """read by :func:`pcdet_freeze.datasets.augmentor.read_augmentors`"""
    data_processor: Any = None
    """read by :func:`pcdet_freeze.datasets.processor.read_processors`"""
    labelled_classes: Modes[tuple[Name, ...]] | tuple[Name, ...] | None = None
    """classes that the boxes of each frame are labelled for, of all frames or by split; null: CLASS_NAMES"""
    keep_empty_frames: bool = False
    on_bad_frame: Literal["raise", "skip"] = "skip"
    """what a training does with a frame or database object that cannot be used; an evaluation raises"""
    bad_frame_limit: Share = 0.01
    """share of bad frames, and of bad database objects, above which a training ends all the same"""
    on_implausible: Literal["raise", "warn"] = "raise"
    """what becomes of point files that look like another kind of file (``datasets.checks``)"""
    timeout: Annotated[float, at_least(0)] | None = 60.0
    """seconds after which a frame that is still being read is an error; null or 0: never"""
    base_config: Annotated[Any, Key("_BASE_CONFIG_")] = None


@dataclass(frozen=True, kw_only=True)
class OpenDataSettings(DataSettings):
    """DATA_CONFIG of a data set that does not say which keys it has."""

    other_keys: ClassVar[bool] = True
