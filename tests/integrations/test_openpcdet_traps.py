"""Errors of OpenPCDet that come from versions and folders get advice."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from standin_runs import Standin

from pcdet_freeze import openpcdet
from pcdet_freeze.integrations.openpcdet.command import environment


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Floating point exception."), "numpy<2"),
        (AttributeError("module 'numpy' has no attribute 'int'."), "numpy<1.24"),
        (
            RuntimeError("Weights only load failed. WeightsUnpickler error: Unsupported global: GLOBAL a.b"),
            "=1",
        ),
        (
            ValueError(
                "loaded state dict contains a parameter group that doesn't match the size of optimizer's"
            ),
            "NOT_TRAIN_IN_MULTI_TASK",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "cfgs/dataset_configs/kitti_dataset.yaml"),
            "tools",
        ),
    ],
)
def test_a_known_error_comes_with_advice(error: Exception, advice: str) -> None:
    assert advice in environment.advice_for(error)


def test_any_other_error_has_no_advice() -> None:
    assert environment.advice_for(ValueError("anything else")) == ""
    assert environment.advice_for(RuntimeError("Weights only load failed: the file is cut off")) == ""


def test_the_probe_recognises_a_process_that_is_killed_by_sigfpe() -> None:
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGFPE)"
    assert environment.is_killed_by_sigfpe([sys.executable, "-c", kill])
    assert not environment.is_killed_by_sigfpe([sys.executable, "-c", "raise SystemExit(1)"])


def test_a_working_numpy_gives_no_warning() -> None:
    import numpy

    if int(numpy.__version__.partition(".")[0]) < 2:
        assert environment.numpy_warning() == ""
    else:
        assert environment.numpy_warning() == "" or "numpy<2" in environment.numpy_warning()


def test_numpy_2_with_an_old_cumm_is_a_warning_when_a_model_is_frozen(standin: Standin, caplog: Any) -> None:
    standin.monkeypatch.setattr(
        environment.metadata, "version", lambda name: {"numpy": "2.1.0"}.get(name, "0.4.11")
    )
    standin.monkeypatch.setattr(environment, "_installed", lambda: {"cumm-cu120", "numpy"})
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGFPE)"
    standin.monkeypatch.setattr(environment, "_CUMM_PROBE", kill)
    openpcdet.install()
    standin.build("second", ["backbone_3d"])
    assert any(
        "numpy 2.1.0 with cumm-cu120 0.4.11 crashes a process with SIGFPE" in r.getMessage()
        for r in caplog.records
    )


def test_the_advice_is_printed_when_a_script_ends_with_the_error(tmp_path: Path, capsys: Any) -> None:
    script = tmp_path / "train.py"
    script.write_text(
        "raise RuntimeError('DataLoader worker is killed by signal: Floating point exception.')\n"
    )
    path, argv = sys.path[:], sys.argv[:]
    with pytest.raises(RuntimeError):
        openpcdet.main([str(script)])
    openpcdet.uninstall()
    sys.path[:], sys.argv[:] = path, argv
    assert "numpy<2" in capsys.readouterr().err
