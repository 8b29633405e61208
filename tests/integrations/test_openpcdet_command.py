"""The command ``python -m pcdet_freeze.openpcdet``, in one and two real processes."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from openpcdet_launch import launch, torchrun_plugin
from standin_runs import RANDOM, STANDIN, TRUNK, Standin, frozen_words

from pcdet_freeze import openpcdet

CFG = "tools/cfgs/toy_models/pv_rcnn.yaml"
LIST = frozen_words(f"{TRUNK},dense_head", *RANDOM)


def state_of(root: Path, epoch: int, tag: str = "default") -> dict[str, Any]:
    file = root / f"output/toy_models/pv_rcnn/{tag}/ckpt/checkpoint_epoch_{epoch}.pth"
    return torch.load(file, weights_only=False)


def frozen_equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    names = ("backbone_3d", "backbone_2d", "dense_head")
    return all(
        torch.equal(v, b["model_state"][k]) for k, v in a["model_state"].items() if k.startswith(names)
    )


def test_the_documented_command_trains_from_the_root_with_paths_relative_to_it(tmp_path: Path) -> None:
    done = launch(tmp_path, "tools/train.py", "--cfg_file", CFG, "--epochs", "2", "--workers", "1", *LIST)
    assert done.returncode == 0, done.stderr
    assert "certificate intact" in done.stderr and done.stdout.count("iteration") == 8
    assert frozen_equal(state_of(tmp_path, 1), state_of(tmp_path, 2))


def test_the_command_runs_from_the_tools_folder_too(standin: Standin, capsys: Any) -> None:
    os.chdir(STANDIN / "tools")
    words = ["train.py", "--cfg_file", "cfgs/toy_models/pv_rcnn.yaml", "--epochs", "1", *LIST]
    assert openpcdet.main(words) == 0
    assert state_of(standin.root, 1)["pcdet_freeze"]


@pytest.mark.parametrize("word", ["--local-rank=0", "--local_rank=0"])
def test_the_word_that_torch_distributed_launch_adds_reaches_the_script(tmp_path: Path, word: str) -> None:
    script = tmp_path / "own.py"
    script.write_text("import sys; sys.exit(0 if sys.argv[1:] == ['a', '--local_rank=0'] else 3)")
    path, argv = sys.path[:], sys.argv[:]
    with pytest.raises(SystemExit) as left:
        openpcdet.main([word, str(script), "a"])
    openpcdet.uninstall()
    sys.path[:], sys.argv[:] = path, argv
    assert left.value.code == 0


def test_an_error_is_one_message_and_exit_code_1(standin: Standin) -> None:
    run = standin.train("pv_rcnn", *frozen_words("backbone_4d", *RANDOM))
    assert run.code == 1 and "Traceback" not in run.err
    assert "FreezeError: 'backbone_4d' names no module of this model. Nearest: backbone_3d" in run.err


def test_the_scripts_own_exit_code_is_kept(standin: Standin) -> None:
    with pytest.raises(SystemExit) as left:
        standin.train("pv_rcnn", "--no_such_flag")
    assert left.value.code == 2


def test_a_missing_script_is_an_error_that_names_it(capsys: Any) -> None:
    assert openpcdet.main(["tools/trian.py"]) == 1
    assert "'tools/trian.py'" in capsys.readouterr().err


def test_a_warning_is_printed_if_a_script_builds_no_model(
    standin: Standin, tmp_path: Path, capsys: Any
) -> None:
    script = tmp_path / "own.py"
    script.write_text("import sys; print(sys.argv[1:], __name__, __file__, sys.path[0])")
    assert openpcdet.main([str(script), "--a", "b"]) == 0
    out, err = capsys.readouterr()
    assert out.split() == ["['--a',", "'b']", "__main__", str(script), str(tmp_path)]
    assert "did not call pcdet.models.build_network" in err


def test_a_script_with_its_own_loop_calls_install_begin_and_verify(tmp_path: Path) -> None:
    script = tmp_path / "own.py"
    script.write_text(
        """
import pcdet_freeze.openpcdet
pcdet_freeze.openpcdet.install()
import logging, types, torch
from easydict import EasyDict
from pcdet.models import build_network
cfg = EasyDict(NAME="SECONDNet", VFE={"NAME": "MeanVFE"}, BACKBONE_3D={"NAME": "Backbone3D"},
               MAP_TO_BEV={"NAME": "MapToBEV"}, BACKBONE_2D={"NAME": "Backbone2D"},
               DENSE_HEAD={"NAME": "DenseHead"},
               NOT_TRAIN_IN_MULTI_TASK=["backbone_3d"], FREEZE={"ALLOW_RANDOM": True})
model = build_network(cfg, 1, types.SimpleNamespace(class_names=["Car"], logger=logging.getLogger()))
optimizer = torch.optim.Adam(model.parameters())
pcdet_freeze.openpcdet.begin(model, optimizer)
before = [p.clone() for p in model.backbone_3d.parameters()]
for step in range(3):
    model.train()
    batch = {"points": torch.randn(2, 12, 4), "gt_boxes": torch.randn(2, 3, 4)}
    optimizer.zero_grad()
    model(batch)[0]["loss"].backward()
    optimizer.step()
assert all(torch.equal(a, b) for a, b in zip(before, model.backbone_3d.parameters()))
pcdet_freeze.openpcdet.verify(model)
model.backbone_3d.conv1[0].weight.data += 1
try:
    pcdet_freeze.openpcdet.verify(model)
except pcdet_freeze.CertificateError as error:
    print("changed:", str(error).splitlines()[-1].strip())
"""
    )
    done = launch(tmp_path, str(script), module=False)
    assert done.returncode == 0, done.stderr
    assert "changed: backbone_3d.conv1.0.weight changed" in done.stdout


def test_two_processes_train_with_ddp_and_a_schedule(tmp_path: Path) -> None:
    words = ["tools/train.py", "--launcher", "pytorch", "--cfg_file", CFG, "--epochs", "3"]
    schedule = "[{EPOCH: 2, TRAIN: [backbone_2d], LR_SCALE: 0.5}]"
    names = frozen_words("backbone_3d,backbone_2d", *RANDOM, "MODEL.FREEZE.SCHEDULE", schedule)
    done = torchrun_plugin(tmp_path, *words, *names)
    assert done.returncode == 0, done.stderr
    first, second, third = (state_of(tmp_path, epoch)["model_state"] for epoch in (1, 2, 3))
    trunk = [key for key in first if key.startswith("backbone")]
    assert all(torch.equal(first[key], second[key]) for key in trunk)
    assert {key.split(".")[0] for key in trunk if not torch.equal(second[key], third[key])} == {"backbone_2d"}
    assert done.stderr.count("certificate intact") == 1  # in rank 0's log
    # both ranks write to one pipe, and a line's end may come behind the other's line
    sums = re.findall(r"weights of rank \d: (-?0x[\da-fp.+-]+)", done.stdout)
    assert len(sums) == 2 and sums[0] == sums[1]


@pytest.fixture
def shown(standin: Standin, capsys: Any) -> Any:
    """Run ``explain`` in this process: (exit code, output)."""

    def run(*words: str) -> tuple[int, str]:
        os.chdir(STANDIN)
        standin.forget()
        capsys.readouterr()
        code = openpcdet.main(["explain", *words])
        return code, capsys.readouterr().out

    return run


def test_p6_explain_prints_frozen_modules_and_the_losses_that_reach_each_module(shown: Any) -> None:
    code, out = shown("--cfg_file", CFG, "--set", "MODEL.NOT_TRAIN_IN_MULTI_TASK", f"{TRUNK},dense_head")
    assert code == 0
    assert "frozen 573 of 767 parameters" in out and "losses traced with one batch of ToyDataset" in out
    rows = {line.split()[1]: line for line in out.splitlines() if line.startswith(("├", "└"))}
    assert "dense_head; gives no" in rows["dense_head"] and "2 locked" in rows["backbone_3d"]
    assert "loss of point_head" in rows["pfe"] and "0,1" in rows["pfe"]
    assert "dense_head gives no loss; in training it runs in eval mode" in out.replace("\n  ", " ")


def test_p6_explain_exits_with_1_if_a_training_would_raise(shown: Any) -> None:
    code, out = shown("--cfg_file", CFG, "--set", "MODEL.NOT_TRAIN_IN_MULTI_TASK", "dense_head")
    assert code == 1 and "ERROR: backbone_2d is trainable, but no loss depends on it" in out


def test_p6_explain_works_without_data_and_says_so(shown: Any, standin: Standin) -> None:
    words = [
        "--set",
        "DATA_CONFIG.DATA_PATH",
        "no/such/folder",
        "MODEL.NOT_TRAIN_IN_MULTI_TASK",
        "backbone_3d",
    ]
    code, out = shown("--cfg_file", CFG, *words)
    assert code == 0 and "nothing: no batch could be read (FileNotFoundError" in out and "176" in out


def test_p6_explain_prints_json_with_a_schedule(shown: Any) -> None:
    schedule = ["MODEL.FREEZE.SCHEDULE", "[{EPOCH: 5, TRAIN: [backbone_2d]}]"]
    words = ["--set", "MODEL.NOT_TRAIN_IN_MULTI_TASK", "[backbone_3d, backbone_2d]", *schedule]
    code, out = shown("--cfg_file", CFG, "--json", *words)
    found = json.loads(out)
    assert code == 0 and found["schedule"] == [
        "after 5 epochs, backbone_2d begins to train (16 parameter tensors)"
    ]
    assert {row["module"]: row["frozen"] for row in found["rows"]}["backbone_2d"] == "yes"


def test_p6_explain_without_a_list_freezes_nothing(shown: Any) -> None:
    code, out = shown("--cfg_file", "tools/cfgs/toy_models/transfusion.yaml")
    assert code == 0 and "nothing is frozen" in out and "loss" in out


def test_p6_explain_does_not_copy_the_data_set(standin: Standin, capsys: Any) -> None:
    def refuse(self: Any, memo: Any) -> None:
        raise AssertionError("a data set was copied")

    os.chdir(STANDIN)
    standin.module("pcdet.datasets").DatasetTemplate.__deepcopy__ = refuse
    assert openpcdet.main(["explain", "--cfg_file", CFG]) == 0
    assert "losses traced with one batch of ToyDataset" in capsys.readouterr().out


def test_p6_explain_names_parameters_that_adam_onecycle_drops(shown: Any) -> None:
    words = ["--set", "MODEL.NOT_TRAIN_IN_MULTI_TASK", "backbone_2d"]
    code, out = shown("--cfg_file", "tools/cfgs/toy_models/dsvt.yaml", *words)
    assert code == 0 and "does not collect 3 trainable parameters" in out.replace("\n  ", " ")


@pytest.mark.parametrize("name", ["explain", "verify"])
def test_ctrl_c_is_one_line_and_exit_code_130(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(argv: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(openpcdet, f"run_{name}", interrupted)
    assert openpcdet.main([name, "a.pth", "b.pth"]) == 130
    assert capsys.readouterr().err == f"\npython -m pcdet_freeze.openpcdet {name}: interrupted\n"


def test_p7_verify_compares_two_checkpoints(standin: Standin, capsys: Any) -> None:
    run = standin.train("pv_rcnn", *LIST)
    files = [str(run.checkpoint(epoch)) for epoch in (1, 2)]
    assert openpcdet.main(["verify", *files]) == 0 and "EQUAL" in capsys.readouterr().out
    assert openpcdet.main(["verify", *files, "--names", "roi_head"]) == 1
    assert "roi_head.cls_layer.weight changed" in capsys.readouterr().out


def test_without_arguments_the_usage_is_printed(capsys: Any) -> None:
    assert openpcdet.main([]) == 2
    assert "usage: python -m pcdet_freeze.openpcdet" in capsys.readouterr().out


@pytest.mark.parametrize("words", [[], ["explain"], ["verify"]])
def test_the_help_begins_with_two_examples_and_fits_80_columns(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    if words:
        with pytest.raises(SystemExit):
            openpcdet.main([*words, "--help"])
    else:
        assert openpcdet.main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "examples:" and max(map(len, lines)) <= 80
    begun = " ".join(["  python -m pcdet_freeze.openpcdet", *words])
    assert sum(line.startswith(begun) for line in lines[: lines.index("")]) == 2
