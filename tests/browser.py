"""A page in a real browser, without a window: Chromium by its DevTools protocol over two pipes, which needs no library."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on the PATH (Debian: apt-get install chromium)"
)
_PATIENCE_S = 120.0  # of a busy machine; a quiet one needs seconds
# Where Chromium expects the ends of its two pipes.
_AS_3_AND_4 = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
for end, number in zip(ends, (3, 4)):
    os.dup2(end, number)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Page:
    """An open page; `faults` is what it complained of: exceptions, errors on the console, what could not be loaded."""

    def __init__(self, commands: int, answers: int) -> None:
        self.faults: list[str] = []
        self._commands, self._answers, self._pending = commands, answers, b""
        self._ids = itertools.count(1)
        self._session: str | None = None

    def open(self, file: Path, width: int, height: int) -> None:
        """Show a file in a window of so many pixels, and wait until all of it is there."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url=file.resolve().as_uri())
        self.wait_for("document.readyState == 'complete' && location.protocol == 'file:'")

    def value(self, expression: str) -> Any:
        """Of JavaScript in the page."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        until = time.monotonic() + _PATIENCE_S
        while not self.value(expression):
            assert time.monotonic() < until, f"not within {_PATIENCE_S} s: {expression}"
            time.sleep(0.05)

    def click(self, element: str, share: float = 0.5) -> None:
        """With the mouse, at an element (JavaScript): in the middle of its height, at a share of its width."""
        self.value(f"{element}.scrollIntoView({{block: 'nearest'}})")
        box = self.value(f"(({{x, y, width, height}}) => [x, y, width, height])({element}.getBoundingClientRect())")
        at = {"x": box[0] + share * box[2], "y": box[1] + box[3] / 2, "button": "left", "clickCount": 1}
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, **at)

    def picture(self, file: Path) -> None:
        """Save the whole page as PNG, to be looked at."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", captureBeyondViewport=True)["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        session = {} if self._session is None else {"sessionId": self._session}
        text = json.dumps({"id": number, "method": method, "params": params, **session})
        os.write(self._commands, text.encode() + b"\0")
        while (message := self._read()).get("id") != number:
            self._hear(message.get("method", ""), message.get("params", {}))
        assert "error" not in message, f"{method}: {message['error']}"
        return dict(message["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._pending:
            ready, _, _ = select.select([self._answers], [], [], _PATIENCE_S)
            assert ready, f"the browser said nothing for {_PATIENCE_S} s"
            part = os.read(self._answers, 1 << 20)
            assert part, "the browser ended"
            self._pending += part
        text, _, self._pending = self._pending.partition(b"\0")
        return dict(json.loads(text))

    def _hear(self, event: str, what: dict[str, Any]) -> None:
        said: dict[str, Callable[[], str]] = {
            "Runtime.exceptionThrown": lambda: what["exceptionDetails"]["exception"]["description"],
            "Runtime.consoleAPICalled": lambda: f"{what['type']}: {what['args']}",
            "Log.entryAdded": lambda: f"{what['entry']['level']}: {what['entry']['text']}",
        }
        if event in said:
            self.faults.append(said[event]())


@contextmanager
def page_in_chromium(profile: Path) -> Iterator[Page]:
    """A browser of its own that keeps what it must in the folder `profile`."""
    assert CHROMIUM is not None
    commands_out, commands_in = os.pipe()
    answers_out, answers_in = os.pipe()
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    command = [sys.executable, "-c", _AS_3_AND_4, str(commands_out), str(answers_in), CHROMIUM, *flags]
    with profile.with_suffix(".log").open("wb") as log:
        process = subprocess.Popen(command, pass_fds=(commands_out, answers_in), stdout=log, stderr=log)
    os.close(commands_out)
    os.close(answers_in)
    page = Page(commands_in, answers_out)
    try:
        yield page
    finally:
        os.close(commands_in)  # at which it ends
        os.close(answers_out)
        try:
            process.wait(_PATIENCE_S)
        finally:
            process.kill()
