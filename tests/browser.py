"""A headless Chromium, spoken to over a pipe in its DevTools protocol: what a page logs, asks for and looks like."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from contextlib import contextmanager
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
PATIENCE = 60.0  # seconds for any answer


def executable():
    """Return the path of an installed Chromium, or None."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page of a running browser."""

    def __init__(self, pipe_in, pipe_out):
        self._in, self._out, self._rest, self._number = pipe_in, pipe_out, b"", 0
        self.events = []
        self._session = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network", "Security"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """Call a method and return its result; events that come meanwhile are kept."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._in, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self._number:
            self.events.append(answer)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    def _receive(self):
        """Return the next message."""
        end = time.monotonic() + PATIENCE
        while b"\0" not in self._rest:
            if not select.select([self._out], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser says nothing")
            piece = os.read(self._out, 1 << 20)
            if not piece:
                raise EOFError("the browser is gone")
            self._rest += piece
        text, _, self._rest = self._rest.partition(b"\0")
        return json.loads(text)

    def open(self, address, width=1440, height=900, *, dark=False):
        """Go to an address, in a window of that width, and wait until everything is loaded."""
        phone = width < 600
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=phone)
        self.theme(dark)
        self.events.clear()
        self.send("Page.navigate", url=str(address))
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._receive())
        self.run("Promise.all([...document.images].map((image) => image.decode().catch(() => 0))).then(() => 1)")

    def theme(self, dark):
        """Say what the system prefers: dark or light, and nothing that moves while it is measured."""
        wishes = {"prefers-color-scheme": "dark" if dark else "light", "prefers-reduced-motion": "reduce"}
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self.send("Emulation.setEmulatedMedia", features=features)

    def run(self, expression):
        """Return the value of a JavaScript expression, awaited."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"])
        return found["result"].get("value")

    def press(self, key):
        """Press and release a key."""
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key],
                **(text if kind == "keyDown" else {}),
            )  # fmt: skip

    def named(self, method):
        """Return what came with the events of a name since the page was opened."""
        return [event["params"] for event in self.events if event.get("method") == method]

    def complaints(self):
        """Return the console's errors and warnings and uncaught exceptions."""
        self.run("1")  # what is under way has come by then
        logged = [entry["entry"]["text"] for entry in self.named("Log.entryAdded") if entry["entry"]["level"] != "info"]
        called = [str(call["args"]) for call in self.named("Runtime.consoleAPICalled") if call["type"] != "log"]
        return logged + called + [str(thrown) for thrown in self.named("Runtime.exceptionThrown")]

    def requests(self):
        """Return the addresses that were asked for, other than the page's own data."""
        self.run("1")
        asked = [request["request"]["url"] for request in self.named("Network.requestWillBeSent")]
        return [address for address in asked if not address.startswith("data:")]

    def screenshot(self, path, *, whole=True):
        """Write a PNG of the page, or of what the window shows of it."""
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        Path(path).write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(profile):
    """Start a Chromium with an empty profile directory, and end it."""
    theirs_in, ours_out = os.pipe()
    ours_in, theirs_out = os.pipe()
    command = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    arguments = [executable(), *OPTIONS, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        ["bash", "-c", command, *arguments], pass_fds=(theirs_in, theirs_out), stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        process.kill()
        process.wait()
        os.close(ours_out)
        os.close(ours_in)
