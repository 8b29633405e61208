"""install and uninstall: neither imports OpenPCDet, and uninstall restores everything."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import pytest
import torch
from standin_runs import TOOLS, Standin, batch_of, frozen_words, seed
from torch import nn

from pcdet_freeze import FreezeError, is_frozen, openpcdet
from pcdet_freeze.errors import IntegrationError

HOMES = ("pcdet.models", "pcdet.config", "train_utils.optimization", "train_utils.train_utils")
LOADING = "pcdet.models.detectors.detector3d_template"


def attributes(standin: Standin) -> dict[str, Any]:
    """All attributes of the modules and classes that the plugin patches, and ``load_state_dict`` of torch."""
    sys.path.insert(0, str(TOOLS))
    homes = [standin.module(name) for name in HOMES]
    template = standin.module(LOADING).Detector3DTemplate
    found = {
        f"{home.__name__}.{name}": value for home in (*homes, template) for name, value in vars(home).items()
    }
    return {**found, "load_state_dict": nn.Module.load_state_dict}


def test_installing_the_plugin_imports_nothing_of_pcdet() -> None:
    """Nor a package that OpenPCDet may be installed without."""
    absent = {"pcdet", "spconv", "numba", "PIL", "tensorboardX"}
    code = (
        f"import sys, pcdet_freeze.openpcdet as o; o.install(); sys.exit(bool({absent} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_models_freeze_if_pcdet_is_imported_after_install(standin: Standin) -> None:
    openpcdet.install()
    model = standin.build("second", ["backbone_2d"])
    assert is_frozen(model.backbone_2d) and not is_frozen(model.dense_head)


def test_models_freeze_if_pcdet_is_imported_before_install(standin: Standin) -> None:
    script = ModuleType("user_script")
    script.build_network = standin.module("pcdet.models").build_network
    sys.modules[script.__name__] = script
    try:
        openpcdet.install()
        assert script.build_network is standin.module("pcdet.models").build_network
        assert is_frozen(standin.build("second", ["backbone_2d"]).backbone_2d)
        openpcdet.uninstall()
        assert script.build_network is standin.module("pcdet.models").build_network
    finally:
        del sys.modules[script.__name__]


def test_uninstall_restores_every_attribute(standin: Standin) -> None:
    before = attributes(standin)
    openpcdet.install()
    model = standin.build("pv_rcnn", ["vfe", "backbone_3d"])
    standin.optimizer(model)
    assert attributes(standin) != before
    openpcdet.uninstall()
    assert attributes(standin) == before


def test_uninstall_restores_modules_that_were_imported_in_between(standin: Standin) -> None:
    openpcdet.install()
    attributes(standin)
    openpcdet.uninstall()
    meanwhile = attributes(standin)
    assert all(not hasattr(value, "__wrapped__") for value in meanwhile.values() if callable(value))
    loaders = [sys.modules[name].__spec__.loader for name in HOMES]
    assert all("exec_module" not in vars(loader) for loader in loaders)


def test_uninstall_releases_the_models_as_they_were_built(standin: Standin) -> None:
    plain = standin.build("pv_rcnn")
    openpcdet.install()
    model = standin.build("pv_rcnn", ["backbone_2d", "dense_head"])
    openpcdet.uninstall()
    for (name, before), (_, after) in zip(plain.named_modules(), model.named_modules(), strict=True):
        assert type(before) is type(after) and vars(before).keys() == vars(after).keys(), name
        assert before.training == after.training, name
        assert len(after._forward_hooks) == len(after._forward_pre_hooks) == 0, name
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_after_uninstall_a_kept_reference_calls_the_original(standin: Standin) -> None:
    openpcdet.install()
    build = standin.module("pcdet.models").build_network
    openpcdet.uninstall()
    models = standin.module("pcdet.models")
    models.build_network, kept = build, models.build_network
    assert not is_frozen(standin.build("second", ["backbone_2d"]).backbone_2d)
    models.build_network = kept


def test_a_second_install_and_a_second_uninstall_do_nothing(standin: Standin) -> None:
    before = attributes(standin)
    openpcdet.install()
    openpcdet.install()
    assert sum(type(finder).__name__ == "AfterImport" for finder in sys.meta_path) == 1
    openpcdet.uninstall()
    openpcdet.uninstall()
    assert attributes(standin) == before


def test_n2_without_the_key_a_training_is_bit_identical(standin: Standin) -> None:
    with_plugin = standin.train("pv_rcnn", tag="with")
    without = standin.train("pv_rcnn", tag="without", plugin=False)
    assert with_plugin.losses == without.losses and len(without.losses) == 8
    patched, plain = with_plugin.state(), without.state()
    assert patched.keys() == plain.keys()
    assert all(torch.equal(patched["model_state"][key], value) for key, value in plain["model_state"].items())
    assert str(patched["optimizer_state"]) == str(plain["optimizer_state"])
    assert "nothing is frozen" in with_plugin.err and "nothing is frozen" not in without.err


def test_n2_without_the_key_a_model_has_no_additional_attributes(standin: Standin) -> None:
    def loss_of(model: nn.Module) -> torch.Tensor:
        seed(1)
        return model(batch_of())[0]["loss"]

    plain = standin.build("pv_rcnn_plusplus")
    expected = loss_of(plain)
    openpcdet.install()
    for empty in (None, []):
        model = standin.build("pv_rcnn_plusplus", empty)
        assert torch.equal(loss_of(model), expected)
        assert [vars(m).keys() for m in model.modules()] == [vars(m).keys() for m in plain.modules()]


def test_errors_of_the_list_are_raised_before_the_model_is_built(standin: Standin) -> None:
    openpcdet.install()
    with pytest.raises(FreezeError, match="must be a list of module names"):
        standin.build("second", "vfe, backbone_2d")
    with pytest.raises(FreezeError, match=r"'backbone2d' names no module.*Nearest: backbone_2d"):
        standin.build("second", ["backbone2d"])


def test_a_list_outside_of_model_is_an_error(standin: Standin) -> None:
    run = standin.train("second", *["--set", "MODEL.NAME", "SECONDNet"])
    assert run.code == 0
    openpcdet.install()
    standin.forget()
    config = standin.module("pcdet.config")
    config.cfg.update({"MODEL": {"NAME": "SECONDNet"}, "NOT_TRAIN_IN_MULTI_TASK": ["vfe"]})
    with pytest.raises(FreezeError, match="belongs under MODEL"):
        standin.module("pcdet.models").build_network(config.cfg.MODEL, 1, None)


def test_a_script_that_cannot_import_pcdet_gets_advice(tmp_path: Any, capsys: Any) -> None:
    script = tmp_path / "train.py"
    script.write_text("from pcdet.models import build_network\n")
    path, argv = sys.path[:], sys.argv[:]
    assert openpcdet.main([str(script)]) == 1
    openpcdet.uninstall()
    sys.path[:], sys.argv[:] = path, argv
    assert "pcdet cannot be imported" in capsys.readouterr().err


def test_an_openpcdet_without_build_network_is_an_error(standin: Standin) -> None:
    openpcdet.install()
    models = standin.module("pcdet.models")
    openpcdet.uninstall()
    del models.build_network
    finders = sys.meta_path[:]
    with pytest.raises(IntegrationError, match="build_network"):
        openpcdet.install()
    assert sys.meta_path == finders


def test_n6_set_accepts_freeze_keys_that_the_yaml_does_not_have(standin: Standin) -> None:
    run = standin.train("pv_rcnn", *frozen_words("[backbone_3d, pfe]", "MODEL.FREEZE.ALLOW_RANDOM", "True",
                                                 "OPTIMIZATION.LR", "0.001"))  # fmt: skip
    assert run.code == 0, run.err
    assert (
        "by backbone_3d, pfe" in run.err
        and "cfg.OPTIMIZATION: {'OPTIMIZER': 'adam_onecycle', 'LR': 0.001" in run.err
    )


def test_functions_are_replaced_if_another_finder_wraps_the_same_loader(standin: Standin) -> None:
    class Wrapping:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            if name != "pcdet.datasets":
                return None
            sys.meta_path.remove(self)
            spec = find_spec(name)
            sys.meta_path.insert(0, self)
            run = spec.loader.exec_module
            spec.loader.exec_module = lambda module: run(module)
            return spec

    finder = Wrapping()
    sys.meta_path.insert(0, finder)
    try:
        openpcdet.install()
        built = standin.module("pcdet.datasets").build_dataloader
    finally:
        sys.meta_path.remove(finder)
    assert built.__wrapped__.__name__ == "build_dataloader" and not hasattr(built.__wrapped__, "__wrapped__")
