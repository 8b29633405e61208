"""OPTIMIZATION.OPTIMIZER -> a torch optimizer over what trains, and the names of what it holds.

Every trainable parameter is in exactly one group, also those that a non-leaf module owns itself (tokens,
``MultiheadAttention.in_proj_weight``); frozen ones are in none.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.registry import Registry
from pcdet_freeze.utils.distributed import unwrap

OPTIMIZERS: Registry[Callable[[nn.Module, Mapping[str, Any]], torch.optim.Optimizer]] = Registry(
    "OPTIMIZATION.OPTIMIZER"
)


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
        """One step; what trains decays without a gradient too, as in OpenPCDet; what is frozen does not."""
        for group in self.param_groups:
            live = [parameter for parameter in group["params"] if parameter.requires_grad]
            if self.decay and live:
                torch._foreach_mul_(live, 1 - self.decay * float(group["lr"]))
        return super().step(closure)


def build_optimizer(
    model: nn.Module, optim_cfg: Mapping[str, Any], apart: Iterable[tuple[Collection[str], float]] = ()
) -> torch.optim.Optimizer:
    """The optimizer that ``optim_cfg.OPTIMIZER`` names, over the trainable parameters of ``model``.

    Args:
        apart: (names of parameters, multiple of the learning rate): these go to groups of their own, behind
            the others and divided as they are, with that ``lr_scale``.

    Raises FreezeError where nothing is left to train, ConfigError for an unknown OPTIMIZER.
    """
    build = OPTIMIZERS.get(optim_cfg["OPTIMIZER"])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FreezeError(
            "Something must be left to train, but every parameter of the model is frozen. "
            "Take an entry out of MODEL.NOT_TRAIN_IN_MULTI_TASK."
        )
    optimizer = build(unwrap(model), optim_cfg)
    _set_apart(unwrap(model), optimizer, apart)
    return optimizer


def _set_apart(
    model: nn.Module, optimizer: torch.optim.Optimizer, apart: Iterable[tuple[Collection[str], float]]
) -> None:
    groups = list(optimizer.param_groups)
    places = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    for names, scale in apart:
        chosen = {places[name] for name in names}
        for group in groups:
            mine = [parameter for parameter in group["params"] if id(parameter) in chosen]
            if mine:
                group["params"] = [p for p in group["params"] if id(p) not in chosen]
                options = {key: value for key, value in group.items() if key != "params"}
                optimizer.add_param_group({**options, "params": mine, "lr_scale": scale})


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


def split_by_norm(
    model: nn.Module, *, everything: bool = False, leaves_only: bool = False
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Parameters of (all else, BatchNorm layers), each in module order, a shared one once.

    Args:
        everything: those that do not train too.
        leaves_only: those of modules without children only.
    """
    seen: set[int] = set()
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for module in model.modules():
        if leaves_only and any(True for _ in module.children()):
            continue
        for parameter in module.parameters(recurse=False):
            if (everything or parameter.requires_grad) and id(parameter) not in seen:
                seen.add(id(parameter))
                groups[isinstance(module, _BatchNorm)].append(parameter)
    return groups


def parameter_names(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[list[str]]:
    """Names of the parameters in each group, in the optimizer's order, without wrapper prefixes."""
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
