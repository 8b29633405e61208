"""Task heads of the user in OpenPCDet: ``add_task``, labels on their way to the batch, training, metric."""

from __future__ import annotations

import gc
import io
import logging
import os
import pickle
import re
import sys
import weakref
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from easydict import EasyDict
from openpcdet_launch import torchrun_plugin
from standin_runs import STANDIN, TOOLS, Standin, seed
from torch import nn

from pcdet_freeze import openpcdet
from pcdet_freeze.errors import ConfigError, DataError, IntegrationError
from pcdet_freeze.integrations.openpcdet.session import session_of
from pcdet_freeze.integrations.openpcdet.tasks import registry
from pcdet_freeze.integrations.openpcdet.tasks.frame_arrays import MATRIX
from pcdet_freeze.integrations.openpcdet.tasks.point_columns import match_rows
from pcdet_freeze.integrations.openpcdet.tasks.task_file import load_task_file

CFG = "tools/cfgs/scan_models/pointpillar.yaml"
FLIP, TURN, PASTE = ({"NAME": name} for name in ("random_world_flip", "random_world_rotation", "gt_sampling"))
LIST = "vfe,backbone_2d,dense_head"


class Head(nn.Module):
    """The smallest head."""

    def __init__(self, model_cfg: Any, input_channels: int, **context: Any) -> None:
        super().__init__()
        self.context, self.layer = context, nn.Linear(input_channels, 1)

    def forward(self, batch_dict: Any) -> Any:
        self.out = self.layer(batch_dict["spatial_features_2d"].mean(dim=(2, 3)))
        return batch_dict

    def get_loss(self) -> Any:
        return self.out.square().mean(), {"loss_small": self.out.detach().mean()}


class OtherHead(Head):
    pass


class HeadWithMetric(Head):
    @staticmethod
    def metric(counts: Any) -> dict[str, float]:
        return {"sum": float(counts)}


def number_of_point(frame: Any, dataset: Any) -> np.ndarray:
    """Label k of point k, whose height is k / 64."""
    return np.arange(len(frame["points"]))


def xyz_of_40(frame: Any, dataset: Any) -> np.ndarray:
    return frame["points"][:40, :3].copy()


def moved(xyz: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return xyz @ matrix[:3, :3].T + matrix[:3, 3]


@pytest.fixture(autouse=True)
def no_tasks() -> Iterator[None]:
    yield
    registry.clear()
    sys.modules.pop("my_head", None)


@pytest.fixture
def loader(standin: Standin) -> Any:
    """``loader(*augmentors)``: OpenPCDet's ``build_dataloader`` for scans, with the plugin."""

    def build(*augmentors: Any, training: bool = True) -> Any:
        openpcdet.install()
        cfg = EasyDict(yaml.safe_load((TOOLS / "cfgs/dataset_configs/scan_dataset.yaml").read_text()))
        cfg.DATA_AUGMENTOR = list(augmentors)
        datasets = standin.module("pcdet.datasets")
        return datasets.build_dataloader(cfg, ["Car"], 4, dist=False, workers=0, training=training)[1]

    return build


def batches(found: Any) -> list[dict[str, Any]]:
    seed()
    return [batch for _ in range(3) for batch in found]


def test_labels_follow_their_points_through_flip_rotation_range_mask_and_shuffle(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="intensity", read=number_of_point)
    for batch in batches(loader(FLIP, TURN)):
        points, labels = batch["points"], batch["intensity"]
        assert labels.dtype == np.float32 and labels.shape == (len(points),)
        assert np.array_equal(labels, points[:, 3] * 64)
        assert 60 < len(points) < 160 and (np.diff(labels) < 0).any()  # masked and shuffled


def test_batches_are_bitwise_equal_with_and_without_labels(loader: Any) -> None:
    plain = batches(loader(PASTE, FLIP, TURN))
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="point_labels", read=number_of_point)
    for before, after in zip(plain, batches(loader(PASTE, FLIP, TURN)), strict=True):
        assert set(after) - set(before) == {"point_labels"}
        assert all(np.array_equal(before[key], after[key]) for key in before)
        assert after["points"].flags["C_CONTIGUOUS"] and after["points"].dtype == before["points"].dtype


@pytest.mark.parametrize(("pasted", "expected"), [({}, 255), ({"Car": 7}, 7)])
def test_pasted_points_are_ignored_or_have_the_label_of_their_class(
    loader: Any, pasted: Any, expected: int
) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=number_of_point, pasted=pasted)
    new = 0
    for batch in batches(loader(PASTE)):
        own = batch["points"][:, 3] * 64 == batch["points"][:, 3].round(6) * 64
        own &= (batch["points"][:, 3] * 64) % 1 == 0
        assert np.array_equal(batch["labels"][own], batch["points"][own, 3] * 64)
        assert (batch["labels"][~own] == expected).all()
        new += (~own).sum()
    assert new > 20


def test_an_augmentor_that_changes_every_point_is_an_error(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=number_of_point)
    with pytest.raises(DataError, match=r"jitter .*DISABLE_AUG_LIST"):
        batches(loader({"NAME": "jitter"}))


def test_a_frame_without_boxes_gives_the_labels_of_the_frame_that_replaces_it(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=number_of_point)
    frame = loader(FLIP).dataset[8]
    assert frame["frame_id"] != "8" and np.array_equal(frame["labels"], frame["points"][:, 2] * 64)


@pytest.mark.parametrize("kind", ["tuple", "none", "own key"])
def test_labels_come_from_other_points_of_the_scan_from_the_data_set_or_are_absent(
    loader: Any, kind: str
) -> None:
    def read(frame: Any, dataset: Any) -> Any:
        labels = np.arange(len(frame["points"]))
        return None if kind == "none" else (frame["points"][5::-1, :3], labels[5::-1])

    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=None if kind == "own key" else read)
    points = np.random.RandomState(0).uniform(-1, 1, (9, 4)).astype(np.float32)
    frame = {"points": points, "labels": np.arange(9), "gt_boxes": np.zeros((1, 7)), "gt_names": ["Car"]}
    found = loader(training=False).dataset.prepare_data(frame)
    known = {"tuple": 6, "none": 0, "own key": 9}[kind]
    assert found["labels"].tolist() == [*range(known), *[255] * (9 - known)]


def test_a_wrong_number_of_labels_names_the_frame_and_what_to_return(loader: Any) -> None:
    openpcdet.add_task("S_HEAD", Head, labels="labels", read=lambda frame, dataset: np.zeros(3))
    with pytest.raises(DataError, match=r"labels of frame \d .*shape \(4\d,\).*\(3,\).*FOV_POINTS_ONLY"):
        batches(loader())


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


def test_rows_are_matched_by_value() -> None:
    known = np.random.RandomState(0).randn(1000, 3).astype(np.float32)
    known[7] = known[3]
    asked = np.concatenate([known[::-1], known[:2] + 1])
    expected = [*range(999, 7, -1), 3, *range(6, -1, -1), -1, -1]
    assert match_rows(known, asked).tolist() == expected
    assert match_rows(known[:0], asked[:2]).tolist() == [-1, -1]


def test_a_data_set_with_labels_can_be_pickled_for_spawned_workers(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels", read=number_of_point)
    found = loader(FLIP)
    dataset, collate = pickle.loads(pickle.dumps((found.dataset, found.collate_fn)))
    openpcdet.uninstall()
    registry.clear()
    batch = collate([dataset[0], dataset[1]])
    assert np.array_equal(batch["labels"], batch["points"][:, 3] * 64)


def test_an_array_of_a_frame_follows_the_augmentation_by_its_transform(loader: Any) -> None:
    openpcdet.add_task("LANE_HEAD", Head, labels="xyz", per="frame", read=xyz_of_40, transform=moved)
    plain = batches(loader(TURN, FLIP))
    assert all(MATRIX not in batch for batch in plain)
    for batch in plain:
        assert batch["xyz"].shape == (4, 40, 3)
        for k in range(4):
            points = batch["points"][batch["points"][:, 0] == k][:, 1:]
            number = (points[:, 2] * 64).astype(int)
            near = np.abs(batch["xyz"][k][number[number < 40]] - points[number < 40])
            assert near.max() < 1e-6


@pytest.mark.parametrize(
    ("augmentor", "transform", "words"),
    [(FLIP, None, "random_world_flip.*transform="), ({"NAME": "jitter"}, moved, "cannot follow jitter")],
)
def test_an_array_of_a_frame_that_cannot_follow_the_augmentation_is_refused(
    loader: Any, augmentor: Any, transform: Any, words: str
) -> None:
    openpcdet.add_task("LANE_HEAD", Head, labels="xyz", per="frame", read=xyz_of_40, transform=transform)
    with pytest.raises(DataError, match=words):
        loader(augmentor)
    loader(augmentor, training=False)


def build(standin: Standin, names: Any = None, **sections: Any) -> Any:
    openpcdet.install()
    cfg = EasyDict(yaml.safe_load((STANDIN / CFG).read_text())).MODEL
    del cfg["SEGMENT_HEAD"]
    cfg.update(EasyDict(sections))
    if names is not None:
        cfg.update(NOT_TRAIN_IN_MULTI_TASK=names, FREEZE=EasyDict(ALLOW_RANDOM=True))
    seed()
    dataset = SimpleNamespace(class_names=["Car"], logger=logging.getLogger("standin"), grid_size=[8, 8, 1])
    return standin.module("pcdet.models").build_network(cfg, 1, dataset)


def scan_batch() -> dict[str, Any]:
    draw = torch.Generator().manual_seed(1)
    points = torch.randn(24, 4, generator=draw)
    points[:, 0] = torch.arange(24) // 12
    return {"points": points, "gt_boxes": torch.randn(2, 3, 4, generator=draw), "batch_size": 2}


def test_a_section_becomes_a_named_module_that_is_built_with_what_it_accepts(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head)
    model = build(standin, SEGMENT_HEAD={"NAME": "Head"})
    assert list(dict(model.named_children()))[-1] == "segment_head"
    assert model.segment_head.layer.in_features == 8
    context = model.segment_head.context
    assert context["grid_size"] == [8, 8, 1] and context["class_names"] == ["Car"]
    assert not hasattr(build(standin), "segment_head")


def test_detections_are_bitwise_equal_with_and_without_the_head(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head)
    with torch.no_grad():
        scores = [
            [d["pred_scores"] for d in model.eval()(scan_batch())[0]]
            for model in (build(standin), build(standin, SEGMENT_HEAD={}))
        ]
    assert len(scores[0]) == 2 and all(map(torch.equal, *scores))


def test_the_loss_of_the_head_is_added_and_is_all_that_is_left_if_the_detection_is_frozen(
    standin: Standin,
) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head)
    model = build(standin, ["vfe", "backbone_2d", "dense_head"], SEGMENT_HEAD={}).train()
    ret_dict, tb_dict, _ = model(scan_batch())
    assert torch.equal(ret_dict["loss"], model.segment_head.out.square().mean()) and "loss_small" in tb_dict
    both, tb_dict, _ = build(standin, SEGMENT_HEAD={}).train()(scan_batch())
    assert {"loss_small", "rpn_loss_cls"} <= set(tb_dict) and both["loss"] > 0


def test_a_frozen_task_head_gives_no_loss_and_the_next_one_trains(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="labels")
    openpcdet.add_task("LANE_HEAD", OtherHead)
    names = ["vfe", "backbone_2d", "dense_head", "segment_head"]
    model = build(standin, names, SEGMENT_HEAD={}, LANE_HEAD={}).train()
    ret_dict = model(scan_batch())[0]
    ret_dict["loss"].backward()
    assert torch.equal(ret_dict["loss"], model.lane_head.out.square().mean())
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {
        "lane_head.layer.weight", "lane_head.layer.bias",
    }  # fmt: skip


def test_a_training_batch_without_the_labels_is_an_error(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head, labels="point_labels")
    model = build(standin, SEGMENT_HEAD={})
    model.eval()(scan_batch())
    with pytest.raises(DataError, match=r"MODEL.SEGMENT_HEAD .*'point_labels'.*build_dataloader"):
        model.train()(scan_batch())


def test_uninstall_restores_every_function_that_tasks_replaced(standin: Standin, loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", HeadWithMetric, labels="labels", read=number_of_point)
    found = loader(FLIP)
    model = build(standin, LIST.split(","), SEGMENT_HEAD={})
    own = {name for thing in (found, found.dataset, model) for name in vars(thing)}
    assert own >= {"prepare_data", "generate_prediction_dicts", "evaluation", "forward", "module_names"}
    openpcdet.uninstall()
    own = {name for thing in (found, found.dataset, model) for name in vars(thing)}
    assert not own & {"prepare_data", "generate_prediction_dicts", "evaluation", "forward", "module_names"}
    assert not any("pcdet_freeze" in name for name in own)
    assert "labels" not in next(iter(found)) and "loss_small" not in model.train()(scan_batch())[1]
    assert registry.registered() == ()


def test_a_data_set_with_labels_can_be_deleted(loader: Any) -> None:
    openpcdet.add_task("SEGMENT_HEAD", HeadWithMetric, labels="labels", read=number_of_point)
    found = loader(FLIP)
    kept = [weakref.ref(found), weakref.ref(found.dataset)]
    del found
    gc.collect()
    assert [thing() for thing in kept] == [None, None]


def test_a_task_file_registers_its_tasks_again_after_uninstall(example: Path) -> None:
    path = sys.path[:]
    for _ in range(2):
        openpcdet.install()
        load_task_file(str(example))
        assert [task.section for task in registry.registered()] == ["SEGMENT_HEAD"]
        openpcdet.uninstall()
    sys.path[:] = path


def test_a_wrong_class_name_and_a_taken_module_name_are_errors(standin: Standin) -> None:
    openpcdet.add_task("SEGMENT_HEAD", Head)
    with pytest.raises(ConfigError, match=r"NAME is 'Tail'.*registered Head"):
        build(standin, SEGMENT_HEAD={"NAME": "Tail"})
    openpcdet.add_task("MODULE_LIST", Head)
    with pytest.raises(IntegrationError, match="module_list, but PointPillar has one"):
        build(standin, MODULE_LIST={})


def test_a_section_without_a_registered_head_is_a_warning(standin: Standin, caplog: Any) -> None:
    build(standin, LANE_HEAD={"NAME": "LaneHead"})
    assert "MODEL.LANE_HEAD became no module" in caplog.text and "--task" in caplog.text
    assert "if it is a head of your own" in caplog.text.lower() and "another name" in caplog.text
    assert "DENSE_HEAD" not in caplog.text


@pytest.mark.parametrize("names", [None, ["vfe"]])
def test_task_heads_are_logged_once_although_a_model_is_built_again(
    standin: Standin, caplog: Any, names: Any
) -> None:
    caplog.set_level(logging.INFO)
    openpcdet.add_task("SEGMENT_HEAD", Head)
    model = build(standin, names, SEGMENT_HEAD={}, LANE_HEAD={})
    if names:
        assert hasattr(session_of(model).rebuild(), "segment_head")  # type: ignore[union-attr]
    assert caplog.text.count("task head segment_head: Head") == 1
    assert caplog.text.count("MODEL.LANE_HEAD became no module") == 1


@pytest.mark.parametrize(
    ("section", "head", "more", "words"),
    [
        ("DENSE_HEAD", Head, {}, "none of OpenPCDet's own.*'DENSE_HEAD'"),
        ("segment_head", Head, {}, "in capitals.*'segment_head'"),
        ("A_HEAD", nn.Linear, {}, "get_loss"),
        ("A_HEAD", "Head", {}, "class with get_loss, but got 'Head'"),
        ("A_HEAD", Head, {"read": number_of_point}, "labels='...'"),
        ("A_HEAD", Head, {"labels": "a", "per": "voxel"}, "'point' or 'frame'.*'voxel'"),
        ("A_HEAD", Head, {"labels": "gt_boxes"}, "key of their own.*'gt_boxes'"),
        ("B_HEAD", OtherHead, {}, "B_HEAD can have one head.*Head.*OtherHead"),
        ("A_HEAD", Head, {"labels": "b", "ignore": 3}, "share the labels 'b'"),
    ],
)
def test_arguments_that_cannot_be_used_are_errors(section: str, head: Any, more: Any, words: str) -> None:
    openpcdet.add_task("B_HEAD", Head, labels="b")
    with pytest.raises(ConfigError, match=words):
        openpcdet.add_task(section, head, **more)
    assert [task.section for task in registry.registered()] == ["B_HEAD"]


def test_add_task_is_public_and_loaded_when_it_is_used() -> None:
    assert "add_task" in openpcdet.__all__ and openpcdet.add_task is registry.add_task
    with pytest.raises(AttributeError, match="no_such_name"):
        openpcdet.no_such_name  # noqa: B018


@pytest.fixture
def example(root: Path, tmp_path: Path) -> Path:
    """``my_head.py`` of the documentation, with labels for it beside it: 1 in the upper half of each scan."""
    text = (root / "docs/openpcdet_tasks.md").read_text()
    (tmp_path / "my_head.py").write_text(re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)[0])
    (tmp_path / "point_labels").mkdir()
    for index in range(8):
        np.save(tmp_path / f"point_labels/{index}.npy", np.arange(40 + index % 4) >= 20)
    return tmp_path / "my_head.py"


def words_for(example: Path, tag: str, epochs: int, *more: str) -> list[str]:
    train = ["tools/train.py", "--cfg_file", CFG, "--epochs", str(epochs), "--extra_tag", tag, *more]
    return ["--task", str(example), *train, "--set", "DATA_CONFIG.DATA_PATH", str(example.parent)]


FROZEN = ["MODEL.NOT_TRAIN_IN_MULTI_TASK", LIST]


def run_in_process(standin: Standin, words: list[str]) -> str:
    """What the command prints."""
    standin.forget()
    registry.clear()
    sys.modules.pop("my_head", None)
    path, out = sys.path[:], io.StringIO()
    os.chdir(STANDIN)
    with redirect_stdout(out), redirect_stderr(out):
        code = openpcdet.main(words)
    openpcdet.uninstall()
    sys.path[:] = path
    assert code == 0, out.getvalue()
    return out.getvalue()


def state_of(root: Path, tag: str, epoch: int) -> dict[str, torch.Tensor]:
    file = root / f"output/scan_models/pointpillar/{tag}/ckpt/checkpoint_epoch_{epoch}.pth"
    return torch.load(file, weights_only=False)["model_state"]


def miou(text: str) -> dict[int, float]:
    """Epoch -> mIoU of its checkpoint."""
    found = re.findall(r"segment_head: mIoU ([\d.]+)\n.*evaluated checkpoint_epoch_(\d+).pth", text)
    return {int(epoch): float(value) for value, epoch in found}


def distance(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> float:
    """Largest difference of a weight of the head."""
    return max(float((a[name] - b[name]).abs().max()) for name in a if name.startswith("segment_head"))


def test_the_documented_example_trains_beside_a_frozen_detection_and_resumes(
    standin: Standin, example: Path
) -> None:
    detection = words_for(example, "first", 1)
    detection.remove("--task"), detection.remove(str(example))
    text = run_in_process(standin, detection)
    assert "MODEL.SEGMENT_HEAD became no module" in text and not miou(text)
    first = standin.root / "output/scan_models/pointpillar/first/ckpt/checkpoint_epoch_1.pth"
    words = [*words_for(example, "second", 12, "--pretrained_model", str(first)), *FROZEN]
    values = miou(run_in_process(standin, words))
    assert len(values) == 12 and values[12] > values[1] + 0.2
    before, after = state_of(standin.root, "first", 1), state_of(standin.root, "second", 12)
    assert {name.partition(".")[0] for name in set(after) - set(before)} == {"segment_head"}
    assert all(torch.equal(before[name], after[name]) for name in before if name != "global_step")
    words = [*words_for(example, "second", 13, "--pretrained_model", str(first)), *FROZEN]
    text = run_in_process(standin, words)
    assert "start training from epoch 12" in text and "certificate intact" in text
    again, resumed = miou(text), state_of(standin.root, "second", 13)
    assert again.pop(13) > values[1] + 0.2 and again == values
    start = state_of(standin.root, "second", 1)
    assert 0 < distance(resumed, after) < distance(start, after) / 4


def test_explain_shows_the_head_and_its_loss(standin: Standin, example: Path, capsys: Any) -> None:
    words = ["explain", "--cfg_file", CFG, "--set", "DATA_CONFIG.DATA_PATH", str(example.parent), *FROZEN]
    text = run_in_process(standin, ["--task", str(example), *words])
    row = next(line for line in text.splitlines() if line.startswith("segment_head"))
    assert row.endswith("segment_head") and "one batch of ScanDataset" in text


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nothing.py", "registered no task"),
        ("json.py", "Rename json.py"),
        ("a.txt", "got '.*a.txt'"),
        ("a-b.py", "got '.*a-b.py'"),
    ],
)
def test_a_task_file_that_cannot_be_used_is_an_error(
    tmp_path: Path, capsys: Any, name: str, words: str
) -> None:
    path = sys.path[:]
    (tmp_path / name).write_text("")
    assert openpcdet.main(["--task", str(tmp_path / name), "tools/train.py"]) == 1
    sys.path[:] = path
    assert re.search(words, capsys.readouterr().err)


def test_task_needs_a_file_and_a_script(example: Path, capsys: Any) -> None:
    path = sys.path[:]
    assert openpcdet.main(["--task"]) == 1 and openpcdet.main([f"--task={example}"]) == 1
    sys.path[:] = path
    err = capsys.readouterr().err
    assert "nothing follows" in err and "must follow --task" in err


@pytest.mark.slow
def test_two_ranks_with_spawned_workers_train_the_example(example: Path) -> None:
    root = example.parent
    words = words_for(example, "ranks", 2, "--launcher", "pytorch", "--workers", "1")
    done = torchrun_plugin(root, *words, *FROZEN, "MODEL.FREEZE.ALLOW_RANDOM", "True")
    assert done.returncode == 0, done.stderr
    sums = re.findall(r"weights of rank \d: (-?0x[\da-fp.+-]+)", done.stdout)
    assert len(sums) == 2 and sums[0] == sums[1] and "certificate intact" in done.stderr
    first, last = state_of(root, "ranks", 1), state_of(root, "ranks", 2)
    changed = {name.partition(".")[0] for name in first if not torch.equal(first[name], last[name])}
    assert changed == {"segment_head", "global_step"}
