"""DATA_CONFIG.TIMEOUT at the start of a run and in `prepare`; a pipe stands for a dead disk."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from easydict import EasyDict
from kitti_maker import make_kitti

from pcdet_freeze.config import cfg_from_yaml_file
from pcdet_freeze.datasets import build_dataloader
from pcdet_freeze.datasets.kitti import prepare_kitti
from pcdet_freeze.datasets.reading.timed_reads import ReadTimeoutError, limit_of, reads_within, timed

CLASSES = ["Car"]
Kill = Callable[[str], Path]


@pytest.fixture
def cfg(tmp_path: Path, root: Path) -> EasyDict:
    data = cfg_from_yaml_file(root / "cfgs/kitti_models/pointpillar.yaml").DATA_CONFIG
    data.update(DATA_PATH=str(make_kitti(tmp_path / "kitti", planes=True)), TIMEOUT=0.5)
    return data


@pytest.fixture
def dead(cfg: EasyDict) -> Iterator[Kill]:
    """Puts a pipe in place of a file; at the end the reads of it return."""
    made: list[Path] = []

    def kill(name: str) -> Path:
        path = Path(cfg.DATA_PATH) / name
        path.unlink()
        os.mkfifo(path)
        made.append(path)
        return path

    yield kill
    for path in made:
        os.close(os.open(path, os.O_RDWR))


@pytest.mark.parametrize("kind", ["velodyne/000001.bin", "calib/000001.txt", "label_2/000001.txt",
                                  "image_2/000001.png"])  # fmt: skip
def test_prepare_names_the_file_that_is_not_read(cfg: EasyDict, dead: Kill, kind: str) -> None:
    path = dead(f"training/{kind}")
    with pytest.raises(ReadTimeoutError, match=rf"DATA_CONFIG\.TIMEOUT: .*within 0\.5 s.*{path}"):
        prepare_kitti(cfg, CLASSES, workers=2)
    assert not (Path(cfg.DATA_PATH) / "kitti_infos_train.pkl").exists()


@pytest.mark.parametrize("name", ["kitti_infos_train.pkl", "kitti_dbinfos_train.pkl"])
def test_the_start_of_a_training_names_the_file_that_is_not_read(
    cfg: EasyDict, dead: Kill, name: str
) -> None:
    prepare_kitti(cfg, CLASSES, workers=1)
    path = dead(name)
    with pytest.raises(ReadTimeoutError, match=str(path)):
        build_dataloader(cfg, CLASSES, 1, training=True)


def test_a_read_within_the_limit_returns_its_value_or_its_error(tmp_path: Path) -> None:
    with reads_within(60):
        assert timed("a", lambda: 5) == 5
        with pytest.raises(FileNotFoundError, match="nowhere"):
            timed("b", (tmp_path / "nowhere").read_bytes)
        assert timed("a", threading.current_thread) is not threading.current_thread()
    assert timed("a", threading.current_thread) is threading.current_thread()


def test_the_thread_ends_with_the_block() -> None:
    with reads_within(60):
        reader = timed("a", threading.current_thread)
    reader.join(60)
    assert not reader.is_alive()


@pytest.mark.parametrize(("value", "limit"), [(5, 5.0), (None, 0.0), (0, 0.0), ("60", 0.0), (-1, 0.0)])
def test_the_limit_is_data_config_timeout(value: object, limit: float) -> None:
    """A value of another kind is a config error, which the data set raises before it reads a file."""
    assert limit_of({"TIMEOUT": value}) == limit and limit_of({}) == 60


def test_a_read_that_is_late_is_not_taken_for_the_next_one() -> None:
    late = threading.Event()
    with reads_within(1.0):
        with pytest.raises(ReadTimeoutError, match="one"):
            timed("one", lambda: late.wait(20) and "one")
        late.set()
        assert timed("two", lambda: "two") == "two"
