"""Headless Chromium (Debian's package) by its DevTools protocol, over a pipe: no driver and no library is needed."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
_FLAGS = (
    *(
        "--headless=new",
        "--remote-debugging-pipe",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
    ),
    *(
        "--no-first-run",
        "--no-default-browser-check",
        "--disable-extensions",
        "--disable-background-networking",
    ),
    *("--disable-component-update", "--disable-sync", "--mute-audio", "--hide-scrollbars", "--lang=en"),
)


class PageError(AssertionError):
    """A script failed, or something did not come in time."""


class Browser:
    """One browser with one page.

    Attributes:
        console: messages of kind error and uncaught exceptions.
        requests: URLs that were asked for.
    """

    def __init__(self, folder: Path) -> None:
        assert CHROMIUM
        self.console: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        to_read, to_write = os.pipe()
        from_read, from_write = os.pipe()

        def place_pipes() -> None:
            # The browser reads commands from 3 and writes to 4; the ends we hold may lie there already.
            first, second = os.dup(to_read), os.dup(from_write)
            high_read, high_write = os.dup2(first, 203), os.dup2(second, 204)
            os.dup2(high_read, 3)
            os.dup2(high_write, 4)

        # A home of its own: Debian's wrapper and the browser write there.
        environment = os.environ | {
            "HOME": str(folder),
            "XDG_CONFIG_HOME": str(folder),
            "XDG_CACHE_HOME": str(folder),
        }
        self._process = subprocess.Popen(
            [CHROMIUM, *_FLAGS, f"--user-data-dir={folder / 'profile'}", "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            close_fds=False,
            preexec_fn=place_pipes,
            start_new_session=True,
            env=environment,
        )
        os.close(to_read)
        os.close(from_write)
        self._in, self._out = to_write, from_read
        self._ids = itertools.count(1)
        self._answers: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._session = ""
        threading.Thread(target=self._read, daemon=True).start()
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End the browser and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._in)

    def send(self, method: str, within_s: float = 60.0, **params: Any) -> dict[str, Any]:
        """One command and its answer."""
        number = next(self._ids)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        box = self._answers[number] = queue.Queue()
        os.write(self._in, json.dumps(message).encode() + b"\0")
        try:
            answer = box.get(timeout=within_s)
        except queue.Empty:
            raise PageError(f"{method} was not answered within {within_s} s") from None
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result

    def run(self, script: str, within_s: float = 60.0) -> Any:
        """The value of an expression in the page; promises are awaited."""
        told = self.send(
            "Runtime.evaluate",
            within_s,
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            userGesture=True,
        )
        if "exceptionDetails" in told:
            details = told["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description") or details["text"])
        return told["result"].get("value")

    def until(self, script: str, within_s: float = 60.0) -> Any:
        """The value of an expression as soon as it is true."""
        end_s = time.monotonic() + within_s
        while time.monotonic() < end_s:
            if value := self.run(script):
                return value
            time.sleep(0.1)
        raise PageError(f"never true: {script}; the page says: {self.run('document.body.innerText')[:600]}")

    def open(self, url: str) -> None:
        """Go to a page and wait until it has loaded."""
        self.send("Page.navigate", url=url)
        self.until(
            f"document.readyState === 'complete' && location.href !== 'about:blank' && {json.dumps(url)} !== ''"
        )

    def size(self, width: int, height: int, *, dark: bool = False, scale: float = 1.0) -> None:
        """What the page is shown on."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])

    def press(self, key: str, code: int, text: str = "") -> None:
        """A key, down and up."""
        for kind in ("keyDown", "keyUp"):
            more = {"text": text} if text and kind == "keyDown" else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **more)

    def screenshot(self, path: Path) -> None:
        """What is shown, as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def _read(self) -> None:
        rest = b""
        while True:
            try:
                part = os.read(self._out, 1 << 16)
            except OSError:
                break
            if not part:
                break
            *messages, rest = (rest + part).split(b"\0")
            for message in messages:
                self._take(json.loads(message))
        os.close(self._out)

    def _take(self, message: dict[str, Any]) -> None:
        if "id" in message:
            box = self._answers.pop(message["id"], None)
            if box is not None:
                box.put(message)
            return
        params = message.get("params", {})
        kind = message.get("method")
        if kind == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.console.append(details.get("exception", {}).get("description") or details["text"])
        elif kind == "Runtime.consoleAPICalled" and params["type"] in ("error", "assert"):
            self.console.append(" ".join(str(each.get("value", each)) for each in params["args"]))
        elif kind == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        elif kind == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif kind == "Page.javascriptDialogOpening":
            self.dialogs.append(params["message"])
