"""The demo: a daemon on the embedded policy, a client that replays real observations, a clean stop.

Run by `make demo-wire`. Leaves the log and the plot in `out/demo-wire`; ends the daemon whatever happens.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from types import FrameType

ROOT = pathlib.Path(__file__).resolve().parents[1]
OUT = ROOT / "out" / "demo-wire"

READY_WITHIN_S = 300.0
STOPPED_WITHIN_S = 45.0
LOG_TAIL = 40

_LISTENING = re.compile(r"listening on ws://[^ ]*:(\d+) \(policy\) and http://[^ ]*:(\d+)/metrics")


class DemoError(Exception):
    """A step of the demo went wrong; the text says which."""


def main() -> int:
    """Run the demo; 0 where every step went well."""
    signal.signal(signal.SIGTERM, _terminate)
    OUT.mkdir(parents=True, exist_ok=True)
    log = OUT / "daemon.log"
    try:
        ready_s = _demo(log)
    except DemoError as error:
        lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL:] if log.exists() else []
        print(f"\ndemo failed: {error}\n--- end of {log.relative_to(ROOT)} ---", file=sys.stderr)
        print("\n".join(lines), file=sys.stderr)
        return 1
    print(f"\ndemo: ready after {ready_s:.1f} s, replay exit 0, daemon exit 0 after SIGTERM")
    print("demo: see " + ", ".join(str(file.relative_to(ROOT)) for file in sorted(OUT.iterdir())))
    return 0


def _demo(log: pathlib.Path) -> float:
    started = time.monotonic()
    with daemon(log, ["--checkpoint", "demo"]) as process:
        port, metrics_port = ports(process, log)
        wait_ready(process, metrics_port)
        ready_s = time.monotonic() - started
        replay = [sys.executable, str(ROOT / "examples" / "libero_replay.py")]
        options = ["--host", "127.0.0.1", "--port", str(port), "--out", str(OUT)]
        if code := subprocess.run([*replay, *options], check=False).returncode:
            raise DemoError(f"the replay ended with exit code {code}")
        stop(process)
    return ready_s


@contextlib.contextmanager
def daemon(
    log: pathlib.Path,
    arguments: Sequence[str],
    command: Sequence[str] = (sys.executable, "-m", "vlad_server.cli"),
) -> Iterator[subprocess.Popen[bytes]]:
    """A daemon on free ports that runs beside `log`; it ends with the block, whatever happens."""
    with log.open("wb") as stream:
        # A session of its own: Ctrl-C reaches this script only, which then ends the daemon.
        process = subprocess.Popen(
            [*command, *arguments, "--port", "0", "--metrics-port", "0"],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            cwd=log.parent,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the daemon as an operator would; DemoError where it does not end well."""
    process.terminate()
    try:
        code = process.wait(STOPPED_WITHIN_S)
    except subprocess.TimeoutExpired:
        raise DemoError(f"the daemon did not stop within {STOPPED_WITHIN_S:.0f} s of SIGTERM") from None
    if code:
        raise DemoError(f"the daemon ended with exit code {code}")


def ports(process: subprocess.Popen[bytes], log: pathlib.Path) -> tuple[int, int]:
    """The policy port and the metrics port, once the daemon listens."""
    end = time.monotonic() + READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        if match := _LISTENING.search(log.read_text(errors="replace")):
            print(
                f"demo: daemon (pid {process.pid}), policy port {match[1]}, metrics port {match[2]}",
                flush=True,
            )
            return int(match[1]), int(match[2])
        time.sleep(0.05)
    raise DemoError(f"the daemon never listened (exit code {process.poll()})")


def wait_ready(process: subprocess.Popen[bytes], metrics_port: int, within_s: float = READY_WITHIN_S) -> None:
    """Wait until the policy is loaded, and say what the daemon is doing."""
    end = time.monotonic() + within_s
    shown = ""
    while time.monotonic() < end:
        if process.poll() is not None:
            raise DemoError(f"the daemon ended with exit code {process.returncode} while it was loading")
        ready, text = _readiness(metrics_port)
        if text != shown:
            print(f"demo: {text}", flush=True)
            shown = text
        if ready:
            return
        time.sleep(0.1)
    raise DemoError(f"the policy was not ready within {within_s:.0f} s; last seen: {shown}")


def _readiness(metrics_port: int) -> tuple[bool, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics_port}/readyz", timeout=5):
            return True, "ready"
    except urllib.error.HTTPError as error:
        with error:
            return False, error.read().decode(errors="replace").strip()
    except OSError as error:
        return False, f"no answer yet ({error})"


def _terminate(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
