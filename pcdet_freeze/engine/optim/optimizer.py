"""OPTIMIZATION.OPTIMIZER -> a torch optimizer over the trainable parameters, and their names by group.

Every trainable parameter is in exactly one group, including those of non-leaf modules (tokens,
``MultiheadAttention.in_proj_weight``). Frozen parameters are in none.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._foreach_utils import _get_fused_kernels_supported_devices

from pcdet_freeze.errors import FreezeError
from pcdet_freeze.registry import Registry
from pcdet_freeze.utils.devices import is_accelerator
from pcdet_freeze.utils.distributed import unwrap

OPTIMIZERS: Registry[Callable[[nn.Module, Mapping[str, Any]], torch.optim.Optimizer]] = Registry(
    "OPTIMIZATION.OPTIMIZER"
)


class DecoupledAdam(torch.optim.Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter, ICLR 2019), in ``torch.optim.Adam``'s groups.

    The decay ``p *= 1 - lr * decay`` is applied to every group before Adam's step, and the groups have
    ``weight_decay: 0``. So the state is plain Adam's: OpenPCDet can load it, and its states load here.
    Options of ``torch.optim.Adam`` (``fused``) are passed on.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        betas: tuple[float, float],
        decay: float,
        **options: Any,
    ) -> None:
        super().__init__(groups, lr=lr, betas=betas, **options)
        self.decay = decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step. Trainable parameters without a gradient decay too, as in OpenPCDet."""
        for group in self.param_groups:
            decayed = [parameter for parameter in group["params"] if parameter.requires_grad]
            if self.decay and decayed:
                torch._foreach_mul_(decayed, 1 - self.decay * float(group["lr"]))
        return super().step(closure)


def build_optimizer(
    model: nn.Module, optim_cfg: Mapping[str, Any], lr_scaled: Iterable[tuple[Collection[str], float]] = ()
) -> torch.optim.Optimizer:
    """Build the optimizer that ``optim_cfg.OPTIMIZER`` names, over the trainable parameters of ``model``.

    Args:
        lr_scaled: (names of parameters, multiple of the learning rate): these parameters go to param groups
            with that ``lr_scale``, appended to the others and divided by norm layers as they are.

    Raises:
        FreezeError: no parameter is trainable.
        ConfigError: an unknown OPTIMIZER.
    """
    build = OPTIMIZERS.get(optim_cfg["OPTIMIZER"])
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise FreezeError(
            "The model must have a trainable parameter, but all of them are frozen. Remove an entry from "
            "MODEL.NOT_TRAIN_IN_MULTI_TASK."
        )
    optimizer = build(unwrap(model), optim_cfg)
    # a GradScaler would leave steps out within the fused kernel, unseen by step hooks and by the decay
    optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
    _add_scaled_groups(unwrap(model), optimizer, lr_scaled)
    return optimizer


def _add_scaled_groups(
    model: nn.Module, optimizer: torch.optim.Optimizer, lr_scaled: Iterable[tuple[Collection[str], float]]
) -> None:
    groups = list(optimizer.param_groups)
    ids = {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)}
    for names, scale in lr_scaled:
        chosen = {ids[name] for name in names}
        for group in groups:
            moved = [parameter for parameter in group["params"] if id(parameter) in chosen]
            if moved:
                group["params"] = [p for p in group["params"] if id(p) not in chosen]
                options = {key: value for key, value in group.items() if key != "params"}
                optimizer.add_param_group({**options, "params": moved, "lr_scale": scale})


@OPTIMIZERS.register_as("adam_onecycle")
def _adam_onecycle(model: nn.Module, cfg: Mapping[str, Any]) -> torch.optim.Optimizer:
    plain, norm = split_by_norm(model)
    lr = cfg["LR"] / cfg["DIV_FACTOR"]
    groups = [{"params": plain}, {"params": norm}]
    options = fused_options(torch.optim.Adam, [*plain, *norm])
    return DecoupledAdam(groups, lr=lr, betas=(cfg["MOMS"][0], 0.99), decay=cfg["WEIGHT_DECAY"], **options)


@OPTIMIZERS.register_as("adam")
def _adam(model: nn.Module, cfg: Mapping[str, Any]) -> torch.optim.Optimizer:
    own = trainable(model)
    options = fused_options(torch.optim.Adam, own)
    return torch.optim.Adam(own, lr=cfg["LR"], weight_decay=cfg["WEIGHT_DECAY"], **options)


@OPTIMIZERS.register_as("sgd")
def _sgd(model: nn.Module, cfg: Mapping[str, Any]) -> torch.optim.Optimizer:
    own = trainable(model)
    options = fused_options(torch.optim.SGD, own)
    return torch.optim.SGD(
        own, lr=cfg["LR"], weight_decay=cfg["WEIGHT_DECAY"], momentum=cfg["MOMENTUM"], **options
    )


def fused_options(kind: type[torch.optim.Optimizer], parameters: Iterable[nn.Parameter]) -> dict[str, Any]:
    """``{"fused": True}`` if ``kind`` has a kernel that updates all ``parameters`` at once, on their device.

    It rounds otherwise than the plain update (relative difference 1e-7 a step), which a CPU therefore keeps:
    runs and resumes on a CPU are equal to the bit across versions.
    """
    has_kernel = "fused" in inspect.signature(kind).parameters
    return {"fused": True} if has_kernel and all(map(_can_be_fused, parameters)) else {}


def _can_be_fused(parameter: nn.Parameter) -> bool:
    supported = _get_fused_kernels_supported_devices()
    return is_accelerator(parameter) and parameter.device.type in supported and parameter.is_floating_point()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    """Return the trainable parameters in module order, a shared one once."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def split_by_norm(
    model: nn.Module, *, everything: bool = False, leaves_only: bool = False
) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Return the trainable parameters of (other modules, BatchNorm layers), in module order, each once.

    Args:
        everything: include frozen parameters.
        leaves_only: only parameters of modules without children.
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
    """Return the names of the parameters in each group, in order, without wrapper prefixes."""
    names = {id(parameter): name for name, parameter in unwrap(model).named_parameters()}
    return [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
