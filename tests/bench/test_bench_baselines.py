"""``bench --what baselines``: the metrics of an evaluation, under the same keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tool_runs import CFG

from pcdet_freeze.__main__ import main

FEW = ["DATA_CONFIG.NUM_SCENES.train", "4", "DATA_CONFIG.NUM_SCENES.test", "3"]
WORDS = ["bench", "--what", "baselines"]


def test_it_prints_and_writes_the_metrics_of_both_tasks(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new" / "baselines.json"
    assert main([*WORDS, "--cfg_file", str(CFG), "--json", str(out), "--set", *FEW]) == 0
    (values,) = json.loads(out.read_text())
    assert 5 < values["segmentation/mIoU"] < 40
    assert 0 < values["lane/F1"] < 0.5
    assert f"{values['segmentation/mIoU']:8.3f}" in capsys.readouterr().out


def test_without_a_config_it_takes_the_synthetic_scenes(capsys: Any) -> None:
    assert main([*WORDS, "--scenes", "2", "--set", *FEW]) == 0
    assert "lane          F1" in capsys.readouterr().out


def test_a_data_set_without_labels_is_an_error(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    from pcdet_freeze.datasets.synthetic import SyntheticDataset

    bare = SyntheticDataset.load_sample
    keys = ("points", "frame_id", "gt_boxes", "gt_names")
    monkeypatch.setattr(SyntheticDataset, "load_sample", lambda s, i: {key: bare(s, i)[key] for key in keys})
    assert main([*WORDS, "--cfg_file", str(CFG), "--set", *FEW]) == 1
    assert "no training frame of SyntheticDataset has any" in capsys.readouterr().err
