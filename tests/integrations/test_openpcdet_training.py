"""Whole trainings by tools/train.py of the stand-in with the plugin."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
import yaml
from standin_runs import CFGS, CONFIGS, RANDOM, TRUNK, Run, Standin, batch_of, frozen_words
from torch import nn

from pcdet_freeze import CertificateError, FreezeError, openpcdet
from pcdet_freeze.freezing import layer_types
from pcdet_freeze.freezing.eval_lock import is_locked

PV = f"{TRUNK},map_to_bev_module,dense_head"


_first: list[bytes] = []


@pytest.fixture
def trained(standin: Standin) -> Run:
    """A run whose weights other runs start from."""
    run = Run(0, "", "", standin.root / "output/toy_models/pv_rcnn/first")
    if not _first:
        run = standin.train("pv_rcnn", "--epochs", "1", tag="first")
        _first.append(run.checkpoint(1).read_bytes())
    run.checkpoint(1).parent.mkdir(parents=True, exist_ok=True)
    run.checkpoint(1).write_bytes(_first[0])
    return run


def stage_two(standin: Standin, trained: Run, names: str, *more: str, flags: tuple[str, ...] = ()) -> Run:
    words = ["--pretrained_model", str(trained.checkpoint(1)), *flags, *frozen_words(names, *more)]
    return standin.train("pv_rcnn", *words, tag="second")


def moved(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    """Modules whose state differs."""
    both = [(key, a["model_state"][key], b["model_state"][key]) for key in a["model_state"]]
    return {key.partition(".")[0] for key, x, y in both if not torch.equal(x, y)} - {"global_step"}


def test_p1_listed_modules_stay_bit_identical_and_all_others_train(standin: Standin, trained: Run) -> None:
    run = stage_two(standin, trained, PV)
    assert run.code == 0, run.err
    assert moved(trained.state(1), run.state(2)) == {"pfe", "point_head", "roi_head"}


def test_the_log_names_frozen_modules_expected_drift_and_the_certificate(
    standin: Standin, trained: Run
) -> None:
    run = stage_two(standin, trained, f"{TRUNK},point_head")
    log = (run.folder / "train.log").read_text()
    assert "pcdet_freeze: frozen" in log and f"by {TRUNK.replace(',', ', ')}, point_head" in log
    assert "point_head gives no loss; in training it runs in eval mode" in log
    assert re.search(r"point_head is frozen, but .*pfe.* are trainable: its predictions will drift", log)
    assert "certificate intact: the frozen state is the same as at the start, bit for bit" in log


def test_p1_the_checkpoint_holds_list_and_certificate_as_plain_data(standin: Standin, trained: Run) -> None:
    run = stage_two(standin, trained, PV)
    state = run.state(2)
    metadata = state.pop("pcdet_freeze")["freeze"]
    torch.save(metadata, run.folder / "metadata.pth")
    assert torch.load(run.folder / "metadata.pth", weights_only=True) == metadata
    assert metadata["entries"] == PV.split(",")
    assert {name.partition(".")[0] for name in metadata["certificate"]["digests"]} == {
        "backbone_3d", "backbone_2d", "dense_head",
    }  # fmt: skip
    assert sorted(state) == ["epoch", "it", "model_state", "optimizer_state", "version"]


@pytest.mark.parametrize("version", ["0.6.0", "0.5.2"])
def test_earlier_releases_train_and_resume_with_the_list(standin: Standin, version: str) -> None:
    standin.use(version)
    first = standin.train("pv_rcnn", "--epochs", "1", *frozen_words(PV, *RANDOM))
    run = standin.train("pv_rcnn", "--epochs", "2", *frozen_words(PV, *RANDOM))
    assert run.code == 0, run.err
    assert moved(first.state(1), run.state(2)) == {"pfe", "point_head", "roi_head"}
    assert "start training from epoch 1" in run.err and "certificate intact" in run.err


@pytest.mark.parametrize("config", [name for name in CONFIGS if name not in ("mppnet", "mppnet_e2e")])
def test_every_detector_trains_with_its_first_stage_frozen(standin: Standin, config: str) -> None:
    sections = yaml.safe_load((CFGS / f"{config}.yaml").read_text())["MODEL"]
    names = [name for name in ("vfe", "backbone_3d") if name.upper() in sections]
    run = standin.train(config, "--epochs", "1", *frozen_words(",".join(names), *RANDOM))
    assert run.code == 0, run.err
    assert "certificate intact" in run.err and len(run.losses) == 4


def test_h4_train_calls_on_model_and_submodules_do_not_undo_the_freeze(standin: Standin) -> None:
    openpcdet.install()
    model = standin.build("pv_rcnn", ["backbone_3d", "backbone_2d.blocks"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for step in range(2):
        model.train()
        model.backbone_2d.train()
        model.backbone_2d.blocks[0][1].training = True
        model(batch_of(step))
    frozen = [key for key in before if key.startswith(("backbone_3d", "backbone_2d.blocks"))]
    assert frozen and all(torch.equal(before[key], model.state_dict()[key]) for key in frozen)
    assert not torch.equal(before["pfe.vsa_point_feature_fusion.1.running_mean"],
                           model.state_dict()["pfe.vsa_point_feature_fusion.1.running_mean"])  # fmt: skip


def test_h5_sync_bn_after_the_freeze_is_locked_again(standin: Standin, trained: Run) -> None:
    """On a CPU a SyncBatchNorm runs in eval mode only: all norm layers must be locked."""
    names = f"{TRUNK},pfe,dense_head,roi_head.shared_fc_layer"
    run = stage_two(standin, trained, names, flags=("--sync_bn",))
    assert run.code == 0, run.err
    assert moved(trained.state(1), run.state(2)) == {"point_head", "roi_head"}
    assert "8 norm layers" in run.err


def test_h5_sync_bn_keeps_every_norm_layer_of_a_model_locked(standin: Standin) -> None:
    openpcdet.install()
    model = standin.build("second", ["backbone_3d", "backbone_2d"])
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    model(batch_of())
    norms = [m for m in model.modules() if layer_types.is_norm(m)]
    assert norms and all(isinstance(m, nn.SyncBatchNorm) and is_locked(m) for m in norms)


def test_p4_freezing_weights_that_were_never_loaded_is_an_error(standin: Standin) -> None:
    run = standin.train("pv_rcnn", *frozen_words(PV))
    assert run.code == 1 and run.losses == []
    assert "never loaded" in run.err and "  backbone_3d (" in run.err


def test_p4_a_module_that_the_file_lacks_is_named(standin: Standin, trained: Run) -> None:
    state = trained.state(1)
    state["model_state"] = {
        k: v for k, v in state["model_state"].items() if not k.startswith("backbone_2d.blocks")
    }
    torch.save(state, trained.checkpoint(1))
    run = stage_two(standin, trained, PV)
    assert run.code == 1 and "  backbone_2d.blocks (" in run.err and "  backbone_3d (" not in run.err


def test_p4_weights_loaded_during_build_network_count_as_loaded(standin: Standin) -> None:
    openpcdet.install()
    parts = standin.module("pcdet.models.parts")
    weights = parts.Backbone3D().state_dict()

    class Pretrained(parts.Backbone3D):
        def __init__(self) -> None:
            super().__init__()
            self.load_state_dict(weights)

    parts.Backbone3D = Pretrained
    model = standin.build("second", ["backbone_3d"], ALLOW_RANDOM=False)
    model(batch_of())
    with pytest.raises(FreezeError, match=r"never loaded.*\n  backbone_2d"):
        standin.build("second", ["backbone_3d", "backbone_2d"], ALLOW_RANDOM=False)(batch_of())


@pytest.mark.parametrize("how", ["load_state_dict", "load of a part", "copy_"])
def test_p4_weights_count_as_loaded_in_each_way_of_loading(standin: Standin, how: str) -> None:
    openpcdet.install()
    model = standin.build("second", ["backbone_3d"], ALLOW_RANDOM=False)
    state = {key: torch.ones_like(value) for key, value in model.state_dict().items()}
    if how == "load_state_dict":
        model.load_state_dict(state)
    elif how == "load of a part":
        model.backbone_3d.load_state_dict(
            {k[12:]: v for k, v in state.items() if k.startswith("backbone_3d.")}
        )
    else:
        for key, value in model.backbone_3d.state_dict().items():
            value.copy_(state[f"backbone_3d.{key}"] * 3)
    model(batch_of())


def test_p4_loading_the_own_state_of_a_model_does_not_count(standin: Standin) -> None:
    openpcdet.install()
    model = standin.build("second", ["backbone_3d"], ALLOW_RANDOM=False)
    model.load_state_dict(model.state_dict())
    with pytest.raises(FreezeError, match="never loaded"):
        model(batch_of())


def test_h11_a_module_that_no_loss_reaches_is_an_error_before_the_first_step(standin: Standin) -> None:
    run = standin.train("pv_rcnn", *frozen_words("dense_head", *RANDOM))
    assert run.code == 1 and run.losses == []
    assert "add 'backbone_3d'" in run.err and "add 'backbone_2d'" in run.err


def test_h3_a_frozen_module_that_depends_on_self_training_is_named(standin: Standin) -> None:
    openpcdet.install()
    parts = standin.module("pcdet.models.parts")

    class Rough(parts.Backbone3D):
        def forward(self, batch_dict: Any) -> Any:
            batch_dict = super().forward(batch_dict)
            batch_dict["encoded"] = nn.functional.dropout(batch_dict["encoded"], 0.5, self.training)
            return batch_dict

    parts.Backbone3D = Rough
    with pytest.raises(FreezeError, match=r"FREEZE.EVAL: \[backbone_3d\]"):
        standin.build("second", ["backbone_3d"])(batch_of())
    standin.build("second", ["backbone_3d"], EVAL=["backbone_3d"])(batch_of())


def test_p5_a_gradient_that_is_zero_in_all_audited_steps_is_logged(standin: Standin) -> None:
    def idle() -> None:
        head = standin.module("pcdet.models.parts").RoIHead
        begin, loss = head.__init__, head.get_loss

        def with_idle(self: Any) -> None:
            begin(self)
            self.idle = nn.Parameter(torch.ones(1))

        def get_loss(self: Any, tb_dict: Any = None) -> Any:
            value, tb_dict = loss(self, tb_dict)
            return value + 0 * self.idle.sum(), tb_dict

        head.__init__, head.get_loss = with_idle, get_loss

    standin.prepare = idle
    run = standin.train("pv_rcnn", *frozen_words("backbone_3d", *RANDOM))
    assert run.code == 0, run.err
    assert "the gradient of roi_head.idle was zero in all of 8 steps" in run.err


@pytest.mark.parametrize(("step", "when"), [(1, "after the first step"), (3, "after an epoch")])
def test_p1_a_frozen_weight_that_changes_stops_the_training(
    standin: Standin, trained: Run, step: int, when: str
) -> None:
    def change_weights() -> None:
        wrapper = standin.module("train_utils.optimization.fastai_optim").OptimWrapper
        models = standin.module("pcdet.models.parts").Backbone2D
        plain, forward, seen, steps = wrapper.step, models.forward, [], []

        def note(self: Any, batch_dict: Any) -> Any:
            seen.append(self)
            return forward(self, batch_dict)

        def changing_step(self: Any) -> None:
            steps.append(self)
            if len(steps) == step:
                seen[0].blocks[0][0].weight.data += 1
            plain(self)

        models.forward, wrapper.step = note, changing_step

    standin.prepare = change_weights
    run = stage_two(standin, trained, PV)
    assert run.code == 1 and not run.checkpoint(1).exists()
    assert f"found {when}" in run.err and "backbone_2d.blocks.0.0.weight changed" in run.err


def test_p1_a_change_after_the_last_checkpoint_is_an_error_at_the_end(standin: Standin, trained: Run) -> None:
    def change_weights() -> None:
        utils = standin.module("train_utils.train_utils")
        keep, save, models = utils.checkpoint_state, utils.save_checkpoint, []

        def checkpoint_state(
            model: Any = None, optimizer: Any = None, epoch: Any = None, it: Any = None
        ) -> Any:
            models.append(model)
            return keep(model, optimizer, epoch, it)

        def save_checkpoint(state: Any, filename: Any = "checkpoint") -> None:
            save(state, filename)
            if state["epoch"] == 2:
                models[-1].dense_head.conv_cls.bias.data += 1

        utils.checkpoint_state, utils.save_checkpoint = checkpoint_state, save_checkpoint

    standin.prepare = change_weights
    run = stage_two(standin, trained, PV)
    assert run.code == 1 and run.checkpoint(2).exists()
    assert "found at the end" in run.err and "dense_head.conv_cls.bias changed" in run.err


def test_p1_changed_state_is_an_error_at_the_checkpoint(standin: Standin) -> None:
    openpcdet.install()
    model = standin.build("second", ["backbone_3d"])
    optimizer = standin.optimizer(model)
    model(batch_of())
    model.backbone_3d.conv1[0].weight.data += 1
    save = standin.module("train_utils.train_utils").checkpoint_state
    with pytest.raises(CertificateError, match=r"found at a checkpoint.*\n.*\n.*conv1.0.weight changed"):
        save(model, optimizer, 1, 8)
