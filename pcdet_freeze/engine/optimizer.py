"""OPTIMIZATION.OPTIMIZER -> a torch optimizer over what trains, and the names of what it holds.

Every trainable parameter is in exactly one group, also those that a non-leaf module owns itself (tokens,
``MultiheadAttention.in_proj_weight``); frozen ones are in none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcdet_freeze.engine.distributed import unwrap
from pcdet_freeze.errors import CheckpointError, FreezeError
from pcdet_freeze.registry import Registry

OPTIMIZERS: Registry[Callable[[nn.Module, Mapping[str, Any]], torch.optim.Optimizer]] = Registry("OPTIMIZER")


class DecoupledAdam(torch.optim.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019), in ``torch.optim.Adam``'s groups.

    The decay ``p *= 1 - lr * decay`` is applied by hand to every group, and the groups say
    ``weight_decay: 0``: so the state is plain Adam's, and goes both ways between this package and OpenPCDet.
    """

    def __init__(
        self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], decay: float
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step; parameters without a gradient decay too, as in OpenPCDet."""
        for group in self.param_groups:
            if self.decay and group["params"]:
                torch._foreach_mul_(group["params"], 1 - self.decay * float(group["lr"]))
        return super().step(closure)


def build_optimizer(model: nn.Module, optim_cfg: Mapping[str, Any]) -> torch.optim.Optimizer:
    """The optimizer that ``optim_cfg.OPTIMIZER`` names, over the trainable parameters of ``model``.

    Raises FreezeError where nothing is left to train, ConfigError for an unknown OPTIMIZER.
    """
    build = OPTIMIZERS.get(optim_cfg["OPTIMIZER"])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FreezeError(
            "Something must be left to train, but every parameter of the model is frozen. "
            "Take an entry out of MODEL.NOT_TRAIN_IN_MULTI_TASK."
        )
    return build(unwrap(model), optim_cfg)


@OPTIMIZERS.register_as("adam_onecycle")
def _adam_onecycle(model: nn.Module, cfg: Mapping[str, Any]) -> torch.optim.Optimizer:
    plain, norm = split_by_norm(model)
    lr = cfg["LR"] / cfg["DIV_FACTOR"]
    groups = [{"params": plain}, {"params": norm}]
    return DecoupledAdam(groups, lr=lr, betas=(cfg["MOMS"][0], 0.99), decay=cfg["WEIGHT_DECAY"])


@OPTIMIZERS.register_as("adam")
def _adam(model: nn.Module, cfg: Mapping[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.Adam(trainable(model), lr=cfg["LR"], weight_decay=cfg["WEIGHT_DECAY"])


@OPTIMIZERS.register_as("sgd")
def _sgd(model: nn.Module, cfg: Mapping[str, Any]) -> torch.optim.Optimizer:
    return torch.optim.SGD(
        trainable(model), lr=cfg["LR"], weight_decay=cfg["WEIGHT_DECAY"], momentum=cfg["MOMENTUM"]
    )


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Trainable parameters in module order, a shared one once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def split_by_norm(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Trainable parameters of (all else, BatchNorm layers), each in module order, a shared one once."""
    seen: set[int] = set()
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.requires_grad and id(parameter) not in seen:
                seen.add(id(parameter))
                groups[isinstance(module, _BatchNorm)].append(parameter)
    return groups


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of the parameters in each group, in the optimizer's order, without wrapper prefixes."""
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]


def load_optimizer_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    names: list[list[str]] | None = None,
) -> None:
    """Load ``state`` after checking that it belongs to exactly these parameters.

    ``names`` are the stored names per group; without them (an OpenPCDet checkpoint) sizes and shapes decide.
    Raises CheckpointError, before anything is loaded, where state and optimizer do not fit.
    """
    here = parameter_names(model, optimizer)
    fault = _other_kind(optimizer, state)
    fault = fault or (_difference(here, names) if names is not None else _misfit(optimizer, state, here))
    if fault:
        raise CheckpointError(
            f"The optimizer state of a checkpoint must be of the parameters that train now, but {fault}. "
            "To start a new stage from its weights use --pretrained_model."
        )
    optimizer.load_state_dict(dict(state))


def _other_kind(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> str:
    """Adam has betas, SGD a momentum: a state of one kind would start the other anew, in silence."""
    kinds = [
        {"betas", "momentum"} & set(groups[0]) for groups in (state["param_groups"], optimizer.param_groups)
    ]
    then, now = (" and ".join(sorted(kind)) or "neither betas nor momentum" for kind in kinds)
    return "" if then == now else f"it is of an optimizer with {then} where this one has {now}"


def _difference(here: list[list[str]], stored: list[list[str]]) -> str:
    if here == [list(group) for group in stored]:
        return ""
    now, then = set(_flat(here)), set(_flat(stored))
    parts = [f"{_some(then - now)} no longer train"] if then - now else []
    parts += [f"{_some(now - then)} have no state in it"] if now - then else []
    return " and ".join(parts) or "their order or grouping is another one"


def _misfit(optimizer: torch.optim.Optimizer, state: Mapping[str, Any], here: list[list[str]]) -> str:
    stored = [list(group["params"]) for group in state["param_groups"]]
    sizes = [len(group) for group in stored]
    if sizes != [len(group) for group in here]:
        return f"it has groups of {sizes} parameters where {[len(group) for group in here]} train"
    shapes = [tuple(p.shape) for group in optimizer.param_groups for p in group["params"]]
    for index, shape, name in zip(_flat(stored), shapes, _flat(here), strict=True):
        for key, value in state["state"].get(index, {}).items():
            if torch.is_tensor(value) and value.dim() and tuple(value.shape) != shape:
                return f"{key} of {name} has shape {tuple(value.shape)} where the parameter has {shape}"
    return ""


def _flat(groups: Iterable[Iterable[Any]]) -> list[Any]:
    return [item for group in groups for item in group]


def _some(names: set[str]) -> str:
    shown = sorted(names)[:3]
    return ", ".join(shown) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
