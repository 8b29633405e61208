"""A hook that copies and pickles of a module do not keep."""

from __future__ import annotations

import copy
import io

import torch
from torch import nn

from pcdet_freeze.utils.picklable_hook import PicklableHook


def hooked() -> tuple[nn.Module, list[object]]:
    module, calls = nn.Linear(2, 2), []
    unpicklable = lambda *args: calls.append(args)  # noqa: E731
    module.register_forward_hook(PicklableHook(unpicklable))
    return module, calls


def test_the_hook_is_called_with_what_torch_passes_to_it() -> None:
    module, calls = hooked()
    x = torch.ones(1, 2)
    output = module(x)
    ((owner, args, result),) = calls  # type: ignore[misc]
    assert owner is module and args[0] is x and result is output


def test_a_deep_copy_does_not_call_the_hook() -> None:
    module, calls = hooked()
    copy.deepcopy(module)(torch.ones(1, 2))
    assert calls == []


def test_a_module_with_the_hook_is_saved_whole_and_loads_without_it() -> None:
    module, calls = hooked()
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    torch.load(file, weights_only=False)(torch.ones(1, 2))
    assert calls == []
