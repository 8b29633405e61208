"""Random models, random lists, random histories: the contract holds after each step."""

from __future__ import annotations

import copy
import io

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations

from pcdet_freeze import FreezeHandle, FreezePlan, freeze, is_frozen, unfreeze
from pcdet_freeze.freezing.entries.paths import walk
from pcdet_freeze.freezing.layer_types import is_recurrent, needs_eval_lock
from pcdet_freeze.freezing.verification.digest import tensor_digest

WIDTH = 4


class Recurrent(nn.Module):
    """A sequence layer that looks like any other."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH, num_layers=2, dropout=0.4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rnn(x[:, None])[0][:, 0]


class Attention(nn.Module):
    """Self-attention over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.MultiheadAttention(WIDTH, 2, dropout=0.4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.heads(x[None], x[None], x[None])[0][0]


class Named(nn.Module):
    """Runs the values of a ModuleDict and a ModuleList, as a detector with many heads does."""

    def __init__(self, parts: list[nn.Module]) -> None:
        super().__init__()
        self.table = nn.ModuleDict({f"part_{i}": part for i, part in enumerate(parts[1:])})
        self.list = nn.ModuleList(parts[:1])
        self.scale = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for part in (*self.list, *self.table.values()):
            x = part(x) * self.scale
        return x


LEAVES = st.sampled_from(
    [
        lambda: nn.Linear(WIDTH, WIDTH),
        lambda: nn.BatchNorm1d(WIDTH),
        lambda: nn.BatchNorm1d(WIDTH, affine=False),
        lambda: nn.BatchNorm1d(WIDTH, momentum=None),
        lambda: nn.LayerNorm(WIDTH),
        lambda: nn.Dropout(0.4),
        lambda: nn.AlphaDropout(0.4),
        lambda: nn.RReLU(),
        lambda: nn.ReLU(),
        lambda: parametrizations.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        lambda: nn.utils.spectral_norm(nn.Linear(WIDTH, WIDTH)),
        Recurrent,
        Attention,
    ]
).map(lambda make: make())
TREES = st.recursive(
    LEAVES,
    lambda below: st.lists(below, min_size=1, max_size=3).flatmap(
        lambda parts: st.sampled_from([nn.Sequential(*parts), Named(parts)])
    ),
    max_leaves=7,
)
DETECTORS = st.lists(TREES, min_size=2, max_size=4).map(lambda parts: nn.Sequential(*parts))
ACTIONS = [
    "train",
    "eval",
    "flag",
    "step",
    "validate",
    "deepcopy",
    "save",
    "convert",
    "replace",
    "grads",
    "load",
]


def batch(seed: int) -> torch.Tensor:
    return torch.randn(6, WIDTH, generator=torch.Generator().manual_seed(seed))


def step(model: nn.Module, seed: int) -> None:
    """One iteration with momentum, decay and whatever gradients there are."""
    model.train()
    out = model(batch(seed)).square().mean()
    if out.requires_grad:
        out.backward()
    if list(model.parameters()):
        torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1).step()


def reload(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def can_pickle(model: nn.Module) -> bool:
    return not any(hasattr(m, "parametrizations") for m in model.modules())


def can_copy(model: nn.Module) -> bool:
    """The older spectral norm keeps its weight as an attribute, which torch cannot copy with its graph."""
    return all(
        not isinstance(v, torch.Tensor) or v.is_leaf for m in model.modules() for v in vars(m).values()
    )


def act(model: nn.Module, action: str, seed: int, frozen: list[str]) -> nn.Module:
    """Do one thing that a training script may do."""
    modules = list(model.modules())
    chosen = modules[seed % len(modules)]
    if action in ("train", "eval"):
        getattr(chosen, action)()
    elif action == "flag":
        chosen.training = bool(seed % 2)
    elif action == "step":
        step(model, seed)
    elif action == "validate":
        model.eval()(batch(seed))
    elif action == "deepcopy" and can_copy(model):
        model = copy.deepcopy(model)
    elif action == "save" and can_pickle(model) and can_copy(model):
        model = reload(model)
    elif action == "grads":
        chosen.requires_grad_(True)
    elif action == "load":
        model.load_state_dict(copy.deepcopy(model.state_dict()))
    elif action == "replace":
        replace_norms(model, seed)
    elif action == "convert":  # only what is frozen: a live SyncBatchNorm does not run on the CPU
        for path in frozen:
            convert(model, path)
    return model


def convert(model: nn.Module, path: str) -> None:
    """``convert_sync_batchnorm`` of one part, which may be a norm layer itself."""
    parent, _, name = path.rpartition(".")
    part = nn.SyncBatchNorm.convert_sync_batchnorm(model.get_submodule(path))
    model.get_submodule(parent)._modules[name] = part


def replace_norms(model: nn.Module, seed: int) -> None:
    """Put an equal new layer in the place of a norm layer, as conversions do."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm1d) and seed % 3:
                fresh = nn.BatchNorm1d(WIDTH, affine=child.affine, momentum=child.momentum)
                fresh.load_state_dict(child.state_dict())
                setattr(module, name, fresh)


def frozen_bits(model: nn.Module, paths: list[str]) -> dict[str, str]:
    """Digests of all tensors of the modules at ``paths``, taken without the code under test's bookkeeping."""
    return {
        f"{path}.{name}": tensor_digest(tensor)
        for path in paths
        for name, tensor in model.get_submodule(path).state_dict().items()
    }


def check_contract(model: nn.Module, paths: list[str], bits: dict[str, str]) -> None:
    """H1-H4, H7 and P1 at once: two training forwards of each frozen module agree and leave it unchanged."""
    model.train()
    model(batch(99))
    assert frozen_bits(model, paths) == bits
    for path in paths:
        part = model.get_submodule(path)
        assert is_frozen(part)
        assert all(not p.requires_grad and p.grad is None for p in part.parameters())
        first, second = part(batch(1)), part(batch(1))
        assert torch.equal(first, second)
        for place, module, parent in walk(part):
            if needs_eval_lock(module, parent) and not is_recurrent(module):
                assert not module.training, place
    assert frozen_bits(model, paths) == bits


def portrait(model: nn.Module) -> list[object]:
    flags = [(type(m), m.training, getattr(m, "dropout", None)) for m in model.modules()]
    return [*flags, *((id(p), p.requires_grad) for p in model.parameters())]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_the_contract_holds_after_any_history(data: st.DataObject) -> None:
    model = data.draw(DETECTORS)
    modules = sorted({path for path, _, _ in walk(model) if path and not hidden(path)})
    paths = data.draw(st.lists(st.sampled_from(modules), min_size=1, max_size=3, unique=True))
    step(model, 0)
    freeze(model, paths)
    tops = [path for path in paths if not any(path.startswith(other + ".") for other in paths)]
    tops = [path for path in tops if not isinstance(model.get_submodule(path), nn.ModuleList | nn.ModuleDict)]
    tops = [path for path in tops if callable_alone(model.get_submodule(path))]
    bits = frozen_bits(model, tops)
    for seed, action in enumerate(data.draw(st.lists(st.sampled_from(ACTIONS), max_size=6)), start=1):
        model = act(model, action, seed, tops)
        check_contract(model, tops, bits)


def hidden(path: str) -> bool:
    """Paths that name machinery rather than layers."""
    return "parametrizations" in path or path.endswith(("out_proj", "heads", "rnn"))


def callable_alone(module: nn.Module) -> bool:
    return "forward" in type(module).__dict__ or type(module).forward is not nn.Module.forward


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_h8_any_nesting_of_freezes_is_undone_exactly(data: st.DataObject) -> None:
    model = data.draw(DETECTORS)
    modules = sorted({path for path, _, _ in walk(model) if path})
    for module in data.draw(st.lists(st.sampled_from(modules), max_size=2)):
        model.get_submodule(module).eval()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(len(name) % 3 != 0)
    before = portrait(model)
    handles: list[FreezeHandle] = []
    for _ in range(data.draw(st.integers(1, 3))):
        names = data.draw(st.lists(st.sampled_from(modules), min_size=1, max_size=3))
        handles.append(freeze(model, FreezePlan(tuple(names), parameters=data.draw(st.booleans()))))
    with torch.no_grad():
        model(batch(3))
    for handle in data.draw(st.permutations(handles)):
        handle.release()
    assert portrait(model) == before
    assert not any(key.startswith("_pcdet_freeze") for m in model.modules() for key in vars(m))


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_h8_unfreezing_in_parts_ends_where_unfreezing_at_once_does(data: st.DataObject) -> None:
    model = data.draw(DETECTORS)
    before = portrait(model)
    names = [path for path, _, _ in walk(model) if path.count(".") == 0 and path]
    freeze(model, names)
    for name in data.draw(st.permutations(names)):
        unfreeze(model, [name])
    assert portrait(model) == before and not model._forward_pre_hooks
