"""A training ends with its report: contents, resume, early stop, errors."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from html_checks import Page
from PIL import Image
from tool_runs import CFG, LIST
from torch import nn

import pcdet_freeze
from pcdet_freeze.datasets.reading.timed_reads import ReadTimeoutError, timed
from pcdet_freeze.engine.hooks import report as hook
from pcdet_freeze.engine.hooks.base import Hook
from pcdet_freeze.report.frames import shrink, without_new_heads
from pcdet_freeze.report.record import RunRecord, load_record
from pcdet_freeze.visualization.bev import BOX_COLORS, CLASS_COLORS, LANE_COLOR
from pcdet_freeze.visualization.demo import Frame
from pcdet_freeze.visualization.scene import Scene

TINY: dict[str, Any] = {
    "DATA_CONFIG.NUM_SCENES": {"train": 4, "test": 2},
    "DATA_CONFIG.SENSOR.BEAMS": "VLP-16",
    "DATA_CONFIG.MIN_CARS": 1,
    "MODEL.BACKBONE_2D.LAYER_NUMS": [1, 1, 1],
    "MODEL.BACKBONE_2D.NUM_FILTERS": [8, 8, 8],
    "MODEL.BACKBONE_2D.NUM_UPSAMPLE_FILTERS": [8, 8, 8],
}
KEEP = {**TINY, LIST: ["vfe", "backbone_2d.blocks"]}
FLAGS: dict[str, Any] = {"batch_size": 2, "workers": 0, "device": "cpu", "fix_random_seed": True}


def train(out: Path, overrides: dict[str, Any] = TINY, **options: Any) -> Any:
    given = {**FLAGS, "epochs": 1, **options}
    return pcdet_freeze.train(str(CFG), overrides, output_dir=out, **given)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train(tmp_path_factory.mktemp("first"), {**TINY, "OPTIMIZATION.REPORT_FRAMES": 1})


@pytest.fixture(scope="module")
def second(first: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A frozen stage on the checkpoint of the first run, with its pictures and warnings."""
    out = tmp_path_factory.mktemp("second")
    return train(out, {**KEEP, "OPTIMIZATION.REPORT_FRAMES": 1}, pretrained=first.checkpoint, epochs=2)


def page_of(run: Any) -> Page:
    return Page((run.output_dir / "report.html").read_text())


def test_the_page_is_valid_self_contained_and_has_every_part(second: Any) -> None:
    found = page_of(second)
    assert found.faults == []
    for title in ("Tasks before and after", "Proof", "What was frozen", "Loss and learning rate",
                  "Memory and time", "Frames", "Warnings", "Run it again", "Environment"):  # fmt: skip
        assert title in found.text, title


def test_the_certificate_the_tree_and_the_list_are_in_the_report(second: Any) -> None:
    record, certificate = load_record(second.output_dir), second.freeze.certificate()
    assert record.certificate is not None and record.certificate.tensors == certificate.digests
    states = {part.path: part.state for part in record.tree}
    assert (
        states["vfe"] == "frozen"
        and states["backbone_2d"] == "partly"
        and states["dense_head"] == "trainable"
    )
    assert record.entries == ["vfe", "backbone_2d.blocks"] and record.drift["vfe"]["verdict"] == "identical"
    found = page_of(second)
    assert "Certificate intact" in found.text and record.certificate.digest in found.text
    assert found.count("details", data_path="backbone_2d.blocks") == 1


def test_metrics_before_are_those_of_the_pretrained_checkpoint(first: Any, second: Any) -> None:
    record = load_record(second.output_dir)
    assert record.before == first.metrics and record.after == second.metrics
    assert str(first.checkpoint) in record.before_source
    assert [task.state for task in record.tasks] == ["trainable"]


def test_curves_have_every_iteration_and_pictures_show_before_and_after(second: Any) -> None:
    record, found = load_record(second.output_dir), page_of(second)
    assert [point[0] for point in record.curves["loss"]] == [1, 2, 3, 4]
    assert [point[1] for point in record.curves["loss"]] == pytest.approx(second.losses)
    assert len(record.curves["learning rate"]) == 4 and found.count("polyline") >= 3
    assert len(record.pictures) == found.count("img") == 1 and "kept" in record.pictures[0].note


def test_the_command_and_the_check_are_in_the_report(first: Any, second: Any) -> None:
    record = load_record(second.output_dir)
    assert "--epochs 2" in record.command and f"--pretrained_model {first.checkpoint}" in record.command
    assert record.checks == [f"pcdet-freeze verify {first.checkpoint} {second.checkpoint}"]
    assert record.config["MODEL"]["NOT_TRAIN_IN_MULTI_TASK"] == record.entries


def test_weights_and_losses_do_not_depend_on_the_report(first: Any, tmp_path: Path) -> None:
    other = {**TINY, "OPTIMIZATION.REPORT_FRAMES": 0, "OPTIMIZATION.EVALUATE_START": True}
    again = train(tmp_path, other)
    assert again.losses == first.losses and again.metrics == first.metrics
    record = load_record(again.output_dir)
    assert record.before and record.before.keys() == first.metrics.keys() and record.pictures == []
    assert "evaluated on the same test data" in record.before_source


def test_a_resumed_run_reports_all_of_its_iterations(first: Any, tmp_path: Path) -> None:
    quick = {"num_epochs_to_eval": 0}
    train(tmp_path, **quick)
    record = load_record(train(tmp_path, epochs=2, **quick).output_dir)
    assert [point[0] for point in record.curves["loss"]] == [1, 2, 3, 4] and record.iterations == 4
    assert record.seconds > 0 and "no test data" in record.pictures_note


def test_a_finished_run_that_starts_again_keeps_the_drift_that_it_found(tmp_path: Path) -> None:
    drifts = {**TINY, LIST: ["backbone_2d"], "MODEL.FREEZE.ALLOW_RANDOM": True}
    found = [load_record(train(tmp_path, drifts, num_epochs_to_eval=0).output_dir) for _ in range(2)]
    assert found[0].drift == found[1].drift and found[0].drift["backbone_2d"]["verdict"] == "drift"
    assert found[0].curves == found[1].curves and found[1].iterations == found[0].iterations


class Stops(Hook):
    """Ends the run after its first step."""

    def after_step(self, trainer: Any) -> None:
        trainer.stopped = True


class Fails(Hook):
    """An error in the first step."""

    def after_step(self, trainer: Any) -> None:
        raise ValueError("the <disk> is on fire")


def with_hook(monkeypatch: pytest.MonkeyPatch, extra: Hook) -> None:
    from pcdet_freeze.engine import build

    built = build.builtin_hooks
    monkeypatch.setattr(build, "builtin_hooks", lambda *args: [*built(*args), extra])


def test_a_run_that_is_stopped_early_has_a_report_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hook(monkeypatch, Stops())
    record = load_record(train(tmp_path, num_epochs_to_eval=0).output_dir)
    assert (record.outcome, record.iterations) == ("stopped early", 1)


def test_a_run_that_ends_with_an_error_has_a_report_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_hook(monkeypatch, Fails())
    with pytest.raises(ValueError, match="on fire"):
        train(tmp_path, {**TINY, "OPTIMIZATION.GUARD": {"recall/rcnn_0.3": 1.0}}, num_epochs_to_eval=0)
    (file,) = tmp_path.rglob("report.html")
    assert load_record(file.parent).after == {}  # what was evaluated are the weights of the start
    found = Page(file.read_text())
    assert found.faults == [] and "ended with ValueError: the <disk> is on fire" in found.text


def fails(*args: Any, **kwargs: Any) -> Any:
    raise RuntimeError("a broken part")


def test_parts_that_fail_are_warnings_and_the_rest_of_the_report_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for broken in ("tree_of", "environment_of", "stored_metrics", "rerun_command"):
        monkeypatch.setattr(hook, broken, fails)
    done = train(tmp_path, num_epochs_to_eval=0, max_iters=1, epochs=None)
    out = capsys.readouterr().out
    for what in ("the module tree", "the run", "metrics of the start", "the command"):
        assert f"The report lacks {what}: RuntimeError: a broken part" in out
    record = load_record(done.output_dir)
    assert done.checkpoint is not None and record.curves["loss"] and page_of(done).faults == []


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path, capsys: Any) -> None:
    target = tmp_path / "synthetic_models" / "pointpillar" / "default"
    (target / "report.html").mkdir(parents=True)
    done = train(tmp_path, num_epochs_to_eval=0, max_iters=1, epochs=None)
    assert done.checkpoint is not None and "The report lacks the report" in capsys.readouterr().out


def test_without_matplotlib_the_report_says_how_to_have_pictures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pcdet_freeze.report import frames

    monkeypatch.setattr(frames, "find_spec", lambda name: None)
    artist = frames.FrameArtist(object(), ["Car"], 2)
    assert "pcdet-freeze[vis]" in artist.obstacle
    assert artist.draw(None, None, tmp_path) == []  # type: ignore[arg-type]


def test_a_frame_whose_name_has_a_folder_has_a_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pcdet_freeze.report import frames

    cloud = np.zeros((4, 4), np.float32)
    names = ["kitti/00", str(tmp_path / "data" / "00")]
    found = [(Frame(name, cloud, list("xyzi"), {"points": cloud}), Scene(cloud)) for name in names]
    data = SimpleNamespace(point_cloud_range=np.array([0, -8, -3, 16, 8, 1.0]), semantic_class_names=())
    artist = frames.FrameArtist(data, ["Car"], 2)
    monkeypatch.setattr(artist, "_predict", lambda model, device: found)
    pictures = artist.draw(None, None, tmp_path)  # type: ignore[arg-type]
    assert [picture.name for picture in pictures] == names
    assert [(tmp_path / picture.file).parent for picture in pictures] == [tmp_path / "pictures"] * 2
    assert all((tmp_path / picture.file).is_file() for picture in pictures)


def test_a_frame_that_is_not_read_in_time_ends_the_wait_for_pictures(tmp_path: Path) -> None:
    from pcdet_freeze.report import frames

    class Hanging(SimpleNamespace):
        def __len__(self) -> int:
            return 1

        def load_sample(self, index: int) -> Any:
            return timed("frame.bin", lambda: time.sleep(5))

    encoder = SimpleNamespace(src_feature_list=list("xyzi"))
    data = Hanging(timeout=0.1, point_feature_encoder=encoder)
    artist = frames.FrameArtist(data, ["Car"], 1)
    with pytest.raises(ReadTimeoutError, match=r"frame\.bin"):
        artist.draw(nn.Linear(1, 1), torch.device("cpu"), tmp_path)


def test_a_picture_outside_of_the_runs_folder_is_not_embedded(tmp_path: Path) -> None:
    from pcdet_freeze.report.record import Picture
    from pcdet_freeze.report.run_page import run_page

    (tmp_path / "secret.png").write_bytes(b"x")
    (tmp_path / "run").mkdir()
    record = RunRecord(pictures=[Picture("a", "", "../secret.png"), Picture("b", "", "none.png")])
    assert Page(run_page(record, tmp_path / "run")).count("img") == 0


def test_classes_have_the_same_colors_in_the_pictures_of_a_report(tmp_path: Path) -> None:
    colors = [*CLASS_COLORS, *BOX_COLORS, LANE_COLOR]
    pure = np.array([[int(color[k : k + 2], 16) for k in (1, 3, 5)] for color in colors], np.uint8)
    opacity = np.linspace(0, 1, 100)[:, None, None]
    edges = (opacity * pure + (1 - opacity) * 255).astype(np.uint8)  # lines are drawn with soft edges
    heights = np.arange(20 * len(pure), dtype=np.uint8).reshape(20, -1, 1) // np.array([1, 2, 3], np.uint8)
    image = np.concatenate([pure[None], edges, *[heights] * 40])
    Image.fromarray(image).save(tmp_path / "frame.png")
    shrink(tmp_path / "frame.png")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "frame.png").convert("RGB"))[0], pure)


def test_a_head_with_random_weights_is_not_in_the_prediction_of_the_start() -> None:
    model = nn.ModuleDict({name: nn.Linear(1, 1) for name in ("dense_head", "segment_head", "lane_head")})
    scene = Scene(
        np.zeros((2, 4)), point_classes=np.zeros(2), cells=np.zeros((1, 1)), lanes=[np.zeros((2, 2))]
    )
    scene.boxes, scene.labels = np.zeros((1, 7), np.float32), np.ones(1, np.int64)
    first = without_new_heads(scene, model, ["dense_head.weight"])
    assert (first.point_classes, first.cells, first.lanes) == (None, None, []) and len(first.boxes) == 1
    second = without_new_heads(scene, model, ["dense_head.weight", "segment_head.weight"])
    assert second.point_classes is scene.point_classes and not second.lanes


def test_report_json_is_plain(second: Any) -> None:
    assert json.loads((second.output_dir / "report.json").read_text())["iterations"] == 4
