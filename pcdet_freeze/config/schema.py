"""Sections of a config that belong to no module: the top level, OPTIMIZATION, the weights of losses.

The sections of data sets, processors, augmentors and modules are dataclasses beside their classes; that of
MODEL.FREEZE is :class:`pcdet_freeze.freezing.plan.FreezeOptions`. All are read by
:func:`pcdet_freeze.utils.settings.sections.read_section`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

from pcdet_freeze.utils.settings.rules import (
    Count,
    Name,
    Rule,
    Share,
    above,
    at_least,
    length,
    not_empty,
    whole,
)
from pcdet_freeze.utils.settings.sections import Section, settable

ClassNames = Annotated[
    tuple[Name, ...], not_empty("a list of class names, all different", advice="CLASS_NAMES: [Car, Cyclist]")
]
HOOKS = (
    "a list of hooks of your own, [{NAME: my_package.my_module.MyHook, ...}] (OpenPCDet's, such as "
    "DisableAugmentationHook, are not implemented)"
)


def _is_list_of_hooks(value: Any) -> bool:
    named = (isinstance(entry, Mapping) and isinstance(entry.get("NAME"), str) for entry in value or [])
    return value is None or (isinstance(value, list) and all(named))


@dataclass(frozen=True)
class TopLevel(Section):
    """The sections of a config; each is read where it is used."""

    class_names: ClassNames
    data_config: Mapping[str, Any]
    model: Mapping[str, Any]
    optimization: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None = None
    hook: Annotated[Any, Rule(HOOKS, _is_list_of_hooks)] = None
    root_dir: Any = None
    """this and the following keys are OpenPCDet's own, which it writes into its config"""
    local_rank: Any = None
    tag: Any = None
    exp_group_path: Any = None


Overlap = Annotated[float, Rule("an IoU above 0 and up to 1", lambda value: 0 < value <= 1)]


@settable("EVALUATION")
@dataclass(frozen=True)
class EvaluationSettings(Section):
    """EVALUATION: how detections are compared with labels."""

    iou: dict[str, Overlap] | None = None
    """class -> least IoU of a detection that counts as found, instead of the benchmark's or the default"""


@settable("MODEL")
@dataclass(frozen=True)
class LossKeys(Section):
    """How the losses of several tasks become one: keys of MODEL."""

    other_keys: ClassVar[bool] = True

    loss_weights: dict[str, Annotated[float, at_least(0)]] | None = None
    """head -> factor of its loss"""
    learn_loss_weights: bool = False
    loss_normalization: Literal["global", "local"] | dict[str, Literal["global", "local"]] | None = None
    """divide by the counts of all ranks or of each, for all heads or by head; null: global in task heads"""


@settable("MODEL")
@dataclass(frozen=True)
class LayoutKeys(Section):
    """Memory format of the BEV maps: keys of MODEL."""

    other_keys: ClassVar[bool] = True

    channels_last: bool | Literal["auto"] = "auto"
    """whether maps stay channels-last, as they are scattered; auto: in training steps where this is faster"""


@dataclass(frozen=True)
class BestSettings(Section):
    """OPTIMIZATION.BEST: the best checkpoint by a metric, and the end of a run that does not improve."""

    example: ClassVar[str] = "{METRIC: segmentation/mIoU, PATIENCE: 5}"

    metric: Name
    """as in result.json: segmentation/mIoU, lane/F1, Car_3d/moderate_R40"""
    mode: Literal["max", "min"] | None = None
    """whether the higher or the lower value is better; null: by the metric"""
    every: Count = 1
    """epochs between two evaluations"""
    patience: Count | None = None
    """evaluations without a better value after which the run ends; null: it does not end early"""
    min_delta: Annotated[float, at_least(0)] = 0.0
    """difference above which a value is better"""


TRACKERS = Rule(
    "wandb, mlflow or [wandb, mlflow]",
    lambda names: 0 < len(names) == len(set(names)) and {*names} <= {"wandb", "mlflow"},
)


@dataclass(frozen=True)
class ValidationKeys(Section):
    """Keys of OPTIMIZATION that evaluate between epochs."""

    best: BestSettings | None = None
    """evaluate after epochs, keep the best checkpoint as checkpoint_best.pth, stop early"""
    guard: dict[str, Annotated[float, at_least(0)]] | None = None
    """metric -> how much it may fall below its value before the training, after each epoch"""


@settable("OPTIMIZATION")
@dataclass(frozen=True, kw_only=True)
class OptimizationSettings(ValidationKeys):
    """OPTIMIZATION: optimizer and learning-rate schedule."""

    needed: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "adam_onecycle": ("MOMS", "PCT_START", "DIV_FACTOR"),
        "adam": ("DECAY_STEP_LIST", "LR_DECAY", "LR_CLIP"),
        "sgd": ("DECAY_STEP_LIST", "LR_DECAY", "LR_CLIP", "MOMENTUM"),
    }
    """optimizer -> keys that it needs besides those without a default"""

    batch_size_per_gpu: Count
    num_epochs: Count
    optimizer: Name
    lr: Annotated[float, above(0)]
    weight_decay: Annotated[float, at_least(0)]
    momentum: Share | None = None
    moms: Annotated[tuple[Share, ...], length(2, "two numbers from 0 to 1")] = ()
    pct_start: Share | None = None
    div_factor: Annotated[float, above(0)] | None = None
    decay_step_list: tuple[Annotated[float, at_least(0)], ...] = ()
    """epochs"""
    lr_decay: Annotated[float, at_least(0)] | None = None
    lr_clip: Annotated[float, at_least(0)] | None = None
    lr_warmup: bool = False
    warmup_epoch: Annotated[float, at_least(0)] | None = None
    grad_norm_clip: Annotated[float, at_least(0)] | None = None
    """null, or 0: gradients are not clipped"""
    use_amp: bool = False
    accumulate: Count = 1
    """batches of each process in one optimizer step"""
    on_nonfinite: Literal["raise", "skip"] = "raise"
    """what happens to a step whose loss or gradient is not finite"""
    nonfinite_limit: Annotated[int, whole(0)] | None = 100
    """steps of a run that may be left out with skip; null: any number"""
    measure_savings: bool = True
    """measure in the first iterations what freezing saves"""
    ema: (
        Annotated[float, Rule("a number between 0 and 1, such as 0.999", lambda value: 0 < value < 1)] | None
    ) = None
    """decay of an exponential moving average of the weights, which evaluations use; null: none"""
    evaluate_start: bool = False
    """evaluate the model before the first step, for the report's table of before and after"""
    report_frames: Annotated[int, whole(0)] = 2
    """frames of the test data that the report shows, where matplotlib is installed; 0: none"""
    validation_loss: Annotated[int, whole(0)] = 0
    """epochs between two measurements of the loss on the test frames, as val/loss; 0: none"""
    tracker: Literal["wandb", "mlflow"] | Annotated[tuple[Name, ...], TRACKERS] | None = None
    """where else figures, pictures, checkpoints and report go; a list for both"""
    task_gradients: Annotated[int, whole(0)] = 0
    """iterations between two measurements of the gradient norm of each task at the trunk; 0: none"""

    @classmethod
    def required(cls, values: Mapping[str, Any]) -> Mapping[str, str]:
        """The keys of the optimizer that ``values`` name."""
        name = values.get("OPTIMIZER")
        keys = cls.needed.get(name, ()) if isinstance(name, str) else ()
        return {key: f" for OPTIMIZER {name}" for key in keys}
