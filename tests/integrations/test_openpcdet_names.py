"""N1 in OpenPCDet's models: any dotted path of any of its configs can be frozen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcdet_freeze import freeze
from pcdet_freeze.freezing.entries.paths import match

BUFFERS = ("running_mean", "running_var", "num_batches_tracked", "global_step")


def skeleton(facts: dict[str, Any]) -> nn.Module:
    """A model with the same modules and tensors, by name and shape, without numbers."""
    root = nn.Module()
    for key, shape in facts["keys"].items():
        *parents, name = key.split(".")
        module = root
        for parent in parents:
            if parent not in module._modules:
                module.add_module(parent, nn.Module())
            module = module._modules[parent]
        whole = key in facts["int_keys"]
        tensor = torch.empty(shape, dtype=torch.int64 if whole else torch.float32, device="meta")
        if name in BUFFERS or whole:
            module.register_buffer(name, tensor)
        else:
            module.register_parameter(name, nn.Parameter(tensor))
    return root


def configs(reference: Path) -> dict[str, dict[str, Any]]:
    files = sorted((reference / "state_dicts").glob("*__*.json"))
    return {path.stem: json.loads(path.read_text()) for path in files}


def test_n1_each_dotted_path_of_all_53_configs_resolves_to_its_module(reference: Path) -> None:
    found = configs(reference)
    assert len(found) == 53
    for name, facts in found.items():
        model = skeleton(facts)
        for path, _ in model.named_modules():
            assert not path or match(model, path).paths == (path,), f"{name}: {path}"


def test_n1_every_second_module_of_all_53_configs_freezes_by_name_and_the_others_do_not(
    reference: Path,
) -> None:
    for name, facts in configs(reference).items():
        model = skeleton(facts)
        second = tuple(f"{child}." for child in list(dict(model.named_children()))[::2])
        freeze(model, [child[:-1] for child in second], certify=False)
        frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {key for key, _ in model.named_parameters() if key.startswith(second)}, name


def test_n1_deep_paths_and_globs_freeze_their_modules(reference: Path) -> None:
    model = skeleton(configs(reference)["kitti_models__pv_rcnn"])
    freeze(model, ["backbone_3d.conv[12]", "roi_head.shared_fc_layer.0"], certify=False)
    frozen = {key for key, parameter in model.named_parameters() if not parameter.requires_grad}
    tops = ("backbone_3d.conv1.", "backbone_3d.conv2.", "roi_head.shared_fc_layer.0.")
    assert frozen == {key for key, _ in model.named_parameters() if key.startswith(tops)}
