"""A checkpoint says the classes of its dense heads, and a head is not loaded for others."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from several_heads_cases import anchor_section, built, several_config, single_config

from pcdet_freeze.engine.checkpoint.head_classes import classes_of_heads
from pcdet_freeze.engine.checkpoint.stitch import Source, Take, stitch
from pcdet_freeze.engine.checkpoint.weights import load_pretrained
from pcdet_freeze.errors import CheckpointError
from pcdet_freeze.freezing.verification.checkpoint_meta import CHECKPOINT_KEY

LOGGER = logging.getLogger("pcdet_freeze.test")
HEADS = {"dense_head": "Car", "cyclist_head": "Cyclist", "pedestrian_head": "Pedestrian"}


def saved(path: Path, model: Any, classes: Any = None) -> Path:
    ours = {"head_classes": classes_of_heads(model) if classes is None else classes}
    torch.save({"model_state": model.state_dict(), CHECKPOINT_KEY: ours}, path)
    return path


@pytest.fixture
def detector() -> Any:
    return built(single_config(), "Car", "Pedestrian")


def test_a_checkpoint_of_the_same_classes_loads_into_the_first_head(tmp_path: Path, detector: Any) -> None:
    model = built(several_config(), seed=1)
    fit = load_pretrained(model, saved(tmp_path / "a.pth", detector), LOGGER)
    assert {name for name in fit.missing if not name.startswith("cyclist_head.")} == set()
    assert torch.equal(model.dense_head.conv_cls.weight, detector.dense_head.conv_cls.weight)


@pytest.mark.parametrize("classes", [["Pedestrian", "Car"], ["Car", "Van"], ["Car"]])
def test_a_head_of_other_classes_is_an_error_that_names_both(
    tmp_path: Path, detector: Any, classes: list[str]
) -> None:
    path, model = saved(tmp_path / "a.pth", detector, {"dense_head": classes}), built(several_config())
    before = model.dense_head.conv_cls.weight.clone()
    message = rf"dense_head was trained for {', '.join(classes)}, but is built for Car, Pedestrian"
    with pytest.raises(CheckpointError, match=message):
        load_pretrained(model, path, LOGGER)
    assert torch.equal(model.dense_head.conv_cls.weight, before)


def test_with_allow_mismatch_the_log_says_it(
    tmp_path: Path, detector: Any, caplog: pytest.LogCaptureFixture
) -> None:
    path = saved(tmp_path / "a.pth", detector, {"dense_head": ["Van", "Pedestrian"]})
    load_pretrained(built(several_config()), path, LOGGER, allow_mismatch=True)
    assert "dense_head was trained for Van, Pedestrian" in caplog.text


@pytest.mark.parametrize("classes", [{}, [], {"dense_head": 3}, {"dense_head": None}])
def test_a_checkpoint_that_does_not_say_its_classes_loads(
    tmp_path: Path, detector: Any, classes: Any
) -> None:
    path = saved(tmp_path / "a.pth", detector, classes)
    assert load_pretrained(built(several_config()), path, LOGGER).loaded


def test_stitched_heads_keep_the_classes_that_they_were_trained_for(detector: Any) -> None:
    beside = built(several_config(), seed=1)
    beside.load_state_dict(detector.state_dict(), strict=False)
    sources = [
        Source.of(
            name, {"model_state": m.state_dict(), CHECKPOINT_KEY: {"head_classes": classes_of_heads(m)}}
        )
        for name, m in {"det": detector, "new": beside}.items()
    ]
    joined, _ = stitch(sources[0], [Take(sources[1], ("cyclist_head",))])
    found = {"dense_head": ["Car", "Pedestrian"], "cyclist_head": ["Cyclist"]}
    assert joined[CHECKPOINT_KEY]["head_classes"] == found
    built(several_config()).load_state_dict(joined["model_state"])


def test_new_heads_of_different_runs_are_stitched_into_one_detector() -> None:
    """One run adds cyclists, another one pedestrians; each class has a head of its own name."""
    one = several_config()
    one["DENSE_HEADS"] = {name: anchor_section(kind) for name, kind in HEADS.items()}
    whole = built(one, seed=2)
    sources = []
    for head, seed in (("dense_head", 0), ("cyclist_head", 1), ("pedestrian_head", 2)):
        names = list(dict.fromkeys(["dense_head", head]))
        config = several_config() | {"DENSE_HEADS": {name: one["DENSE_HEADS"][name] for name in names}}
        model = built(config, *(HEADS[name] for name in names), seed=seed)
        state = {k: v for k, v in model.state_dict().items() if seed == 0 or k.startswith(head)}
        shared = sources[0].state if sources else {}
        ours = {CHECKPOINT_KEY: {"head_classes": classes_of_heads(model)}}
        sources.append(Source.of(head, {"model_state": {**shared, **state}, **ours}))
    joined, _ = stitch(sources[0], [Take(source, (source.name,)) for source in sources[1:]])
    whole.load_state_dict(joined["model_state"])
    assert joined[CHECKPOINT_KEY]["head_classes"] == {name: [kind] for name, kind in HEADS.items()}
