"""Runs nginx with the configuration of `deploy/nginx`, in front of daemons on free ports."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.support.promql import ROOT, binary

needs_nginx = pytest.mark.skipif(binary("nginx") is None, reason="no nginx; try `make nginx`")


@contextlib.contextmanager
def start_nginx(folder: pathlib.Path, ports: Sequence[int]) -> Iterator[int]:
    """Balance over the daemons on `ports`; yields the port of the balancer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    config = (ROOT / "deploy" / "nginx" / "nginx.conf").read_text()
    for old, new in zip((8000, 8001, 8002), (port, *ports), strict=True):
        assert config.count(f"127.0.0.1:{old}") == 1
        config = config.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    (folder / "nginx.conf").write_text(config)
    (folder / "tmp").mkdir()
    command = [str(binary("nginx")), "-p", str(folder), "-c", str(folder / "nginx.conf"), "-g", "daemon off;"]
    with (folder / "nginx.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 20
        while not _listens(port):
            assert process.poll() is None, (folder / "nginx.log").read_text()
            assert time.monotonic() < end, (folder / "nginx.log").read_text()
            time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(20)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
