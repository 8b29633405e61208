"""Processes for the commands of the documentation, without the seconds that importing torch takes.

``CommandServer`` starts one Python process that has imported the package. ``pcdet-freeze``, ``python`` and
``torchrun`` in its ``bin`` folder are small programs that send their words, environment, working directory
and files to it; it forks a process for each, which runs the words as the real program would.
"""

from __future__ import annotations

import array
import atexit
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any

CLIENT = """#!{python} -ISs
import array, json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
message = json.dumps([{name!r}, sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
files = array.array("i", [0, 1, 2])
server.sendmsg([len(message).to_bytes(8, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
server.sendall(message)
os._exit(int(server.recv(8) or b"70"))
"""
PRELOAD = ("torch.distributed.run", "spconv.pytorch", "matplotlib.figure", "tensorboardX",
           "pcdet_freeze.engine.train_api", "pcdet_freeze.openpcdet", "pcdet_freeze.cli.train",
           "pcdet_freeze.cli.bench", "pcdet_freeze.cli.demo", "pcdet_freeze.cli.suggest")  # fmt: skip

INSIDE = "DOCS_SERVER_INSIDE"
"""variable of what a command starts, whose exit code is the command's affair"""


class CommandServer:
    """The process, for the duration of a ``with`` block."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        self.address = str(folder / "socket")
        for name in ("pcdet-freeze", "python", "torchrun"):
            client = self.bin / name
            client.write_text(CLIENT.format(python=sys.executable, address=self.address, name=name))
            client.chmod(0o755)

    def __enter__(self) -> CommandServer:
        command = [sys.executable, "-W", "ignore", __file__, self.address]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, env=self.environment())
        assert self.process.stdout is not None and self.process.stdout.readline() == b"ready\n"
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def done(self) -> list[dict[str, Any]]:
        """The commands of the shell since the last call: ``words``, ``code``, ``seconds`` of process time."""
        log = Path(self.address + ".log")
        lines = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]

    def environment(self, **more: str) -> dict[str, str]:
        """For a shell in which the commands are found."""
        root = Path(__file__).resolve().parents[2]
        paths = {"PATH": f"{self.bin}:{os.environ['PATH']}", "PYTHONPATH": f"{root}:{root / 'tests/helpers'}"}
        fixed = {"OMP_NUM_THREADS": "1", "PYTHON_EXEC": str(self.bin / "python")}
        return {**os.environ, **paths, **fixed, **more}


def serve(address: str) -> None:
    """Import the package, then fork a process for each connection."""
    for name in PRELOAD:
        __import__(name)
    _load_the_rest()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            _answer(connection)
        connection.close()


def _load_the_rest() -> None:
    """Import what a training imports while it runs, and load what numba has compiled.

    The training itself runs in a process of its own: torch refuses a backward pass after a fork that
    another one preceded.
    """
    from tool_runs import CFG, SMALL, folder, train

    from pcdet_freeze.__main__ import main

    with tempfile.TemporaryDirectory() as name, open(os.devnull, "w") as nowhere:
        out = Path(name)
        with redirect_stdout(nowhere), redirect_stderr(nowhere):
            if os.fork() == 0:
                train(out)
                (out / "modules").write_text("\n".join(sys.modules))
                os._exit(0)
            os.wait()
            for module in (out / "modules").read_text().splitlines():
                with suppress(ImportError):
                    importlib.import_module(module)
            ckpt = folder(out) / "ckpt/checkpoint_epoch_2.pth"
            line = ["--cfg_file", str(CFG), "--ckpt", str(ckpt), "--workers", "0", "--output_dir", name]
            assert main(["test", *line, "--set", *SMALL]) == 0


def _answer(connection: socket.socket) -> None:
    size = array.array("i").itemsize
    head, ancillary, _, _ = connection.recvmsg(8, socket.CMSG_SPACE(3 * size))
    files = array.array("i", ancillary[0][2][: 3 * size])
    message = b""
    while len(message) < int.from_bytes(head, "big"):
        message += connection.recv(1 << 20)
    command = os.fork()
    if command == 0:
        connection.close()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        _become(*json.loads(message))
    _, status, used = os.wait4(command, 0)
    code = os.waitstatus_to_exitcode(status)
    code = code if code >= 0 else 128 - code
    name, words, _, environment = json.loads(message)
    done = {"words": [name, *words], "code": code, "seconds": round(used.ru_utime + used.ru_stime, 2)}
    if INSIDE not in environment:
        with Path(connection.getsockname() + ".log").open("a") as log:
            log.write(json.dumps(done) + "\n")
    connection.sendall(str(code).encode())
    os._exit(0)


def _become(name: str, words: list[str], cwd: str, environment: dict[str, str]) -> None:
    """Run the words in this process as a new interpreter would, and end it."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment, **{INSIDE: "1"})
    sys.executable = environment["PYTHON_EXEC"]  # what the command starts is forked, too
    code: Any = 0
    try:
        _run(name, words)
    except SystemExit as error:
        code = error.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def _run(name: str, words: list[str]) -> None:
    more = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[1:1] = [path for path in more if path and path not in sys.path]
    if name == "pcdet-freeze":
        from pcdet_freeze.__main__ import program

        sys.argv = [name, *words]
        return program()
    if name == "torchrun":
        from torch.distributed.run import main

        sys.argv = [name, *words]
        return main()
    while words[0] in ("-u", "-B", "-s"):
        words = words[1:]
    sys.argv = [words[0], *words[1:]]
    if words[0] == "-m":
        sys.path[0] = os.getcwd()
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.path[0] = ""
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), sys.modules["__main__"].__dict__)
    else:
        sys.path[0] = str(Path(words[0]).resolve().parent)
        runpy.run_path(words[0], run_name="__main__")
    return None


if __name__ == "__main__":
    serve(sys.argv[1])
