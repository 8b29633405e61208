"""Every augmentor and processor that the YAMLs name can be built."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from test_configs import NAMES

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets.augmentor import DataAugmentor
from pcdet_freeze.datasets.point_features import PointFeatureEncoder
from pcdet_freeze.datasets.processor import DataProcessor


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_augmentors_and_processors_of_every_yaml_are_built(
    root: Path, tmp_path: Path, name: str, training: bool
) -> None:
    cfg = cfg_from_yaml_file(root / "cfgs" / f"{name}.yaml")
    data, limits = cfg.DATA_CONFIG, np.array(cfg.DATA_CONFIG.POINT_CLOUD_RANGE, np.float32)
    for step in data.DATA_AUGMENTOR.AUG_CONFIG_LIST:
        for database in step.get("DB_INFO_PATH", ()):
            (tmp_path / database).write_bytes(pickle.dumps({}))
    columns = PointFeatureEncoder(data.POINT_FEATURE_ENCODING).num_point_features
    augmentor = DataAugmentor(data.DATA_AUGMENTOR, cfg.CLASS_NAMES, limits, root_path=tmp_path)
    processor = DataProcessor(data.DATA_PROCESSOR, limits, training, columns)
    assert len(augmentor.steps) == len(data.DATA_AUGMENTOR.AUG_CONFIG_LIST)
    assert processor.voxel_size == data.DATA_PROCESSOR[-1].VOXEL_SIZE
