"""A builder of engines may be killed at any moment; the next one is not disturbed, and cleans up."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from tests.engines.backends.tensorrt.test_cache import CONTENT, Builder, make_identity, refuse_to_build
from tests.support.daemon import ROOT
from vlad_engines.backends.tensorrt.cache import EngineCache

STEPS = ("fsync", "replace")
"""What a build calls twice, for the plan and for the manifest."""


def _die(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed(work: Callable[[], object]) -> None:
    """Let a process of its own do `work`, which kills it."""
    if (child := os.fork()) == 0:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the work was done before the kill"


def _die_at(step: str, number: int) -> None:
    """Die instead of calling `step` of `os` for the `number`th time."""
    real, calls = getattr(os, step), 0

    def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return _die() if calls == number else real(*arguments)

    setattr(os, step, counted)


def kill_at_each_step(folder: pathlib.Path) -> None:
    cache, identity = EngineCache(folder), make_identity()
    leftovers = 0
    for step, number in [("build", 1), *((step, number) for step in STEPS for number in (1, 2))]:

        def build_and_die(step: str = step, number: int = number) -> None:
            if step != "build":
                _die_at(step, number)
            cache.obtain(identity, _die if step == "build" else Builder())

        _killed(build_and_die)
        leftovers += len(list(folder.glob(".*")))
        assert bytes(cache.obtain(identity, Builder()).content) == CONTENT
        assert bytes(cache.obtain(identity, refuse_to_build).content) == CONTENT
        assert {path.suffix for path in folder.iterdir()} == {".lock", ".plan", ".json"}
        for path in folder.iterdir():
            path.unlink()
    assert leftovers == len(STEPS) * 2


def take_over(folder: pathlib.Path) -> None:
    building, told = os.pipe()
    identity, builder = make_identity(), Builder()

    def build_for_ever() -> bytes:
        os.write(told, b"x")
        signal.pause()
        raise AssertionError

    if (child := os.fork()) == 0:
        EngineCache(folder).obtain(identity, build_for_ever)
    os.read(building, 1)
    waiting = threading.Thread(target=EngineCache(folder).obtain, args=(identity, builder))
    waiting.start()
    waiting.join(0.2)
    assert builder.calls == 0
    os.kill(child, signal.SIGKILL)
    waiting.join(20)
    assert builder.calls == 1
    os.waitpid(child, 0)


@pytest.mark.parametrize("program", ["kill_at_each_step", "take_over"])
def test_a_builder_that_was_killed_leaves_nothing_in_the_way(tmp_path: pathlib.Path, program: str) -> None:
    # In a process without other threads, because it forks.
    command = f"from {__name__} import *; {program}(pathlib.Path(sys.argv[1]))"
    result = subprocess.run(
        [sys.executable, "-c", command, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
