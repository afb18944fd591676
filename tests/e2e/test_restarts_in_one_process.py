"""The daemon started and stopped again and again in one process: nothing of the former ones is left."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

from tests.support.daemon import ROOT

ROUNDS = 6
SETTLING = 2
"""Rounds in which modules are still imported, and the allocator still grows."""

PROGRAM = """
import asyncio, gc, json, logging, os, pathlib, re, signal, sys, threading
import uvloop
from websockets.asyncio.client import connect
from tests.support.libero import libero_observation
from tests.support.robot import pack, unpack
from vlad_configs.serving import ServeConfig
from vlad_server.app import serve_policy

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
lines = []

class Lines(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())

logging.getLogger().addHandler(Lines())

async def one_life(folder):
    config = ServeConfig("LIBERO", "{}", port=0, metrics_port=0, record_dir=folder)
    worker = [sys.executable, "-m", "tests.support.scripted_worker"]
    serving = asyncio.create_task(serve_policy(config, worker))
    while not (listening := [line for line in lines if line.startswith("listening on")]):
        await asyncio.sleep(0.01)
        assert not serving.done(), serving.result()
    port = int(re.search(r":(\\d+) \\(policy\\)", listening[0])[1])
    async with connect(f"ws://127.0.0.1:{port}", compression=None, proxy=None) as robot:
        await robot.recv()
        await robot.send(pack(libero_observation()))
        assert unpack(await robot.recv())["actions"].shape == (10, 7)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await serving == 0
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left

for _ in range(int(sys.argv[2])):
    lines.clear()
    uvloop.run(one_life(sys.argv[1]))
    gc.unfreeze()  # a daemon keeps what it begins with out of garbage collection
    gc.collect()
    files = [os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")]
    resident = int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    children = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    print(json.dumps([len(files), threading.active_count(), len(children), resident]), flush=True)
"""


def test_lives_leave_no_thread_file_process_or_memory(tmp_path: pathlib.Path) -> None:
    result = subprocess.run(
        [sys.executable, "-W", "default", "-c", PROGRAM, str(tmp_path), str(ROUNDS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert "ResourceWarning" not in result.stderr
    assert "never awaited" not in result.stderr
    lives = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lives) == ROUNDS
    settled = lives[SETTLING:]
    files, threads, children, resident = zip(*settled, strict=True)
    assert len(set(files)) == 1, files
    assert set(threads) == {1}, threads
    assert set(children) == {0}, children
    assert resident[-1] - resident[0] < 4 << 20, resident
