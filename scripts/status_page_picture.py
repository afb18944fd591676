"""Draw docs/images/status-page.png: three robots on recorded observations, the page in headless Chromium.

Needs a daemon (`serve_policy --checkpoint demo`), the package `playwright` and a Chromium on the PATH.
"""

from __future__ import annotations

import argparse
import pathlib
import shutil
import sys
import threading
import time

import numpy as np
from playwright.sync_api import sync_playwright

from vlad_client import WebsocketClientPolicy

ROOT = pathlib.Path(__file__).resolve().parents[1]
OBSERVATIONS = ROOT / "examples" / "data" / "libero_observations.npz"

ROBOTS = (("kitchen-left", 5.0), ("kitchen-right", 3.0), (None, 1.0))
"""Sessions, and how often each asks in a second."""


def main() -> int:
    """Drive the robots while the page fills, then take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000, help="policy port of the daemon")
    parser.add_argument("--seconds", type=float, default=62.0, help="how long the page watches")
    parser.add_argument("--width", type=int, default=1240)
    parser.add_argument("--height", type=int, default=1000)
    parser.add_argument("--scheme", choices=("light", "dark"), default="light")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "docs" / "images" / "status-page.png")
    options = parser.parse_args()
    stop = threading.Event()
    robots = [
        threading.Thread(target=_drive, args=(options.port, session, rate, stop)) for session, rate in ROBOTS
    ]
    for robot in robots:
        robot.start()
    try:
        _take_picture(options)
    finally:
        stop.set()
        for robot in robots:
            robot.join()
    return 0


def _drive(port: int, session: str | None, rate: float, stop: threading.Event) -> None:
    with np.load(OBSERVATIONS) as recorded:
        observations = [
            {
                "observation/image": recorded["image"][n],
                "observation/wrist_image": recorded["wrist_image"][n],
                "observation/state": recorded["state"][n],
                "prompt": str(recorded["prompt"][n]),
            }
            for n in range(len(recorded["image"]))
        ]
    policy = WebsocketClientPolicy("127.0.0.1", port)
    named = {} if session is None else {"vlad/session": session}
    due = time.monotonic()
    count = 0
    while not stop.wait(max(0.0, due - time.monotonic())):
        policy.infer({**observations[count % len(observations)], **named})
        count += 1
        due = max(due + 1.0 / rate, time.monotonic())
    policy.close()


def _take_picture(options: argparse.Namespace) -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(
            viewport={"width": options.width, "height": options.height}, color_scheme=options.scheme
        )
        page.goto(f"http://127.0.0.1:{options.port}/")
        time.sleep(options.seconds)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=options.out, full_page=True)
        browser.close()


if __name__ == "__main__":
    sys.exit(main())
