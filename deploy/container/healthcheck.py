"""Exit code 0 while the daemon of this container serves actions.

Asks /healthz on the metrics port, which is the --metrics-port in SERVER_ARGS, or else 9100: that one is
plain HTTP whatever the policy port speaks. The answer is 503 while the policy loads, after its worker died
and while the daemon drains.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import urllib.error
import urllib.request

TIMEOUT_S = 5.0


def main() -> int:
    """Probe once and say what came."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--metrics-port", "--metrics_port", type=int, default=9100)
    known, _ = parser.parse_known_args(shlex.split(os.environ.get("SERVER_ARGS", "")))
    # Never through a proxy that the environment names: this is the container's own port.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(f"http://127.0.0.1:{known.metrics_port}/healthz", timeout=TIMEOUT_S) as response:
            print(response.read().decode().strip())
    except urllib.error.HTTPError as error:
        with error:
            print(error.read().decode(errors="replace").strip())
        return 1
    except OSError as error:
        print(f"port {known.metrics_port}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
