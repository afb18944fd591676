"""`serve_policy` as it is, except that its engine worker follows a script.

The variable KEEPALIVE_S holds interval and timeout of pings, where a test cannot wait for the real ones.
"""

from __future__ import annotations

import functools
import os
import sys

from vlad_server import app, cli, gateway

if __name__ == "__main__":
    worker = (sys.executable, "-m", "tests.support.scripted_worker")
    cli.serve_policy = functools.partial(app.serve_policy, worker_command=worker)  # type: ignore[assignment]
    if keepalive := os.environ.get("KEEPALIVE_S"):
        gateway.PING_INTERVAL_S, gateway.PING_TIMEOUT_S = map(float, keepalive.split())
    cli.main()
