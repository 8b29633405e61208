"""``pcdet-freeze`` and ``python -m pcdet_freeze``: names of commands, help, errors, Ctrl-C."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from kitti_maker import make_kitti
from tool_runs import CFG, SMALL

from pcdet_freeze import __version__
from pcdet_freeze.__main__ import COMMANDS, SUCCESSORS, main, parser_of

FEW = [*SMALL, "DATA_CONFIG.NUM_SCENES.train", "400"]


def test_underscores_and_hyphens_name_the_same_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from pcdet_freeze.cli import three_stages

    monkeypatch.setattr(three_stages, "run", lambda args: 7)
    assert main(["three_stages"]) == main(["three-stages"]) == 7


def test_without_a_command_all_are_listed(capsys: Any) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("examples:\n") and all(f"\n  {name} " in shown for name in COMMANDS)


def test_the_version_is_the_packages(capsys: Any) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"pcdet_freeze {__version__}\n"


@pytest.mark.parametrize(("name", "successor"), SUCCESSORS.items())
def test_a_former_command_names_its_successor(name: str, successor: str, capsys: Any) -> None:
    assert main([name, "--cfg_file", "x.yaml"]) == 2
    assert f"`pcdet-freeze {successor}`" in capsys.readouterr().err


def test_an_unknown_command_names_the_nearest(capsys: Any) -> None:
    assert main(["trian"]) == 2
    shown = capsys.readouterr().err
    assert "'trian'; did you mean train?" in shown


@pytest.mark.parametrize("name", COMMANDS)
def test_ctrl_c_is_one_line_and_exit_code_130(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def interrupted(args: Any) -> int:
        raise KeyboardInterrupt

    module = __import__(f"pcdet_freeze.cli.{name.replace('-', '_')}", fromlist=["run"])
    monkeypatch.setattr(module, "run", interrupted)
    assert main([name, *parser_of(name, name).examples[0][1].split()]) == 130
    assert capsys.readouterr().err == f"\npcdet-freeze {name}: interrupted\n"


READY = """
import signal, sys
from pcdet_freeze.__main__ import main
from pcdet_freeze.cli import bench, explain
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job of a shell ignores it
print("ready", flush=True)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("words", "sets", "mark"),
    [
        (["explain", "--cfg_file", str(CFG), "--batch_size", "400"], FEW, "ready"),
        (["bench", "--rounds", "500", "--variants", "none", "--json", "rows.json"], SMALL[8:], "grid"),
    ],
)
def test_ctrl_c_of_a_real_process_leaves_no_file_and_no_traceback(
    words: list[str], sets: list[str], mark: str, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", READY, *words, "--set", *sets]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        while mark not in process.stdout.readline():
            assert process.poll() is None
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130
    assert err == f"\npcdet-freeze {words[0]}: interrupted\n"
    assert not list(tmp_path.iterdir())


WHILE_TORCH_LOADS = """
import os, signal, sys

class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            {press}

signal.signal(signal.SIGINT, signal.default_int_handler)
sys.meta_path.insert(0, CtrlC())
from pcdet_freeze.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
PRESS = "os.kill(os.getpid(), signal.SIGINT)"
PRESSES = {
    "once": PRESS,
    "twice": f"{PRESS}; {PRESS}",
    "while an import catches it": f"try: {PRESS}\n            except BaseException: pass",
}


@pytest.mark.parametrize("press", PRESSES)
def test_ctrl_c_in_the_seconds_in_which_torch_is_imported_is_one_line(press: str) -> None:
    code = WHILE_TORCH_LOADS.format(press=PRESSES[press])
    command = [sys.executable, "-c", code, "verify", "a.pth", "b.pth"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "\npcdet-freeze verify: interrupted\n")


def test_ctrl_c_in_prepare_leaves_whole_files_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    make_kitti(tmp_path / "kitti")
    dumps, calls = pickle.dumps, []

    def interrupted(value: Any, protocol: int) -> bytes:
        calls.append(value)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return dumps(value, protocol)

    monkeypatch.setattr("pcdet_freeze.datasets.file_formats.files.pickle.dumps", interrupted)
    words = ["kitti", "--cfg_file", "dataset_configs/kitti_dataset.yaml", "--out", str(tmp_path / "out")]
    assert main(["prepare", *words, "--set", "DATA_PATH", str(tmp_path / "kitti")]) == 130
    files = [path for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert len(files) == 1 and len(pickle.loads(files[0].read_bytes())) == len(calls[0])
    assert capsys.readouterr().err == "\npcdet-freeze prepare: interrupted\n"


def test_a_reader_that_ends_early_is_no_error() -> None:
    words = ["suggest", "--cfg_file", "synthetic_models/stage2_segment.yaml", "--keep", "dense_head"]
    command = [sys.executable, "-m", "pcdet_freeze", *words, "--rounds", "0"]
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")
