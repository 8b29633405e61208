"""A headless Chromium, spoken to over pipes by its DevTools protocol: no further package is needed."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-extensions", "--disable-background-networking", "--hide-scrollbars")  # fmt: skip
WEBGL = ("--use-angle=swiftshader", "--enable-unsafe-swiftshader")
"""drawn by the CPU"""
TIMEOUT = 60


def find_chromium() -> str | None:
    """``$CHROMIUM``, or the first on PATH."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page; ``messages`` holds errors and warnings of its console, and failed or outside requests."""

    def __init__(self, read: Any, write: Any) -> None:
        self._read, self._write, self._number, self._session = read, write, 0, ""
        self._data = b""
        self.messages: list[str] = []
        self.requests: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol, and return its result."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        self._write.write(json.dumps(message).encode() + b"\0")
        self._write.flush()
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._data:
            part = os.read(self._read.fileno(), 1 << 16)
            if not part:
                raise RuntimeError("Chromium ended")
            self._data += part
        raw, _, self._data = self._data.partition(b"\0")
        event: dict[str, Any] = json.loads(raw)
        self._note(event.get("method", ""), event.get("params", {}))
        return event

    def _note(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.messages.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.messages.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning"):
            self.messages.append(str(params["args"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, page: Path | str) -> None:
        """Load a file or URL, and wait until it is drawn."""
        self.call("Page.navigate", url=page if isinstance(page, str) else page.resolve().as_uri())
        while self.value("document.readyState") != "complete":
            pass

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return found["result"].get("value")

    def screenshot(self, path: Path, width: int = 1000, height: int = 800) -> None:
        """Write a PNG of the window."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1,
                  mobile=False)  # fmt: skip
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def pdf(self) -> bytes:
        """The page as it is printed."""
        return base64.b64decode(self.call("Page.printToPDF", printBackground=True)["data"])


@contextmanager
def browser(profile: Path, *flags: str) -> Iterator[Browser]:
    """Start a Chromium with an empty profile; it ends with the block. WEBGL as ``flags``: with WebGL."""
    chromium = find_chromium()
    assert chromium is not None
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    command = [
        chromium,
        *FLAGS,
        *flags,
        "--remote-debugging-pipe",
        f"--user-data-dir={profile}",
        "about:blank",
    ]
    script = 'exec 3<&"$0" 4>&"$1"; shift; exec "$@"'  # Chromium reads from 3 and writes to 4
    words = ["bash", "-c", script, str(to_read), str(from_write), *command]
    null = subprocess.DEVNULL
    process = subprocess.Popen(words, pass_fds=(to_read, from_write), stdin=null, stdout=null, stderr=null)
    os.close(to_read)
    os.close(from_write)
    with open(from_read, "rb", buffering=0) as read, open(to_write, "wb") as write:
        try:
            yield Browser(read, write)
        finally:
            process.terminate()
            try:
                process.wait(TIMEOUT)
            except subprocess.TimeoutExpired:
                process.kill()
