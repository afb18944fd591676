"""The released openpi client, unmodified, in an environment of its own per `websockets` version."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

CLIENT_VERSION = "0.1.2"

_DRIVER = """
import json, sys
import numpy as np
import websockets
from openpi_client import websocket_client_policy

port, requests_file, replies_file = int(sys.argv[1]), sys.argv[2], sys.argv[3]
requests = np.load(requests_file)
policy = websocket_client_policy.WebsocketClientPolicy("127.0.0.1", port)
replies = {"metadata": np.array(json.dumps(policy.get_server_metadata()))}
for index in range(int(requests["count"])):
    observation = {}
    for key in requests.files:
        number, _, path = key.partition("|")
        if number != str(index):
            continue
        value = requests[key]
        if value.dtype.kind == "U":
            value = str(value)
        target = observation
        *parents, name = path.split("|")
        for parent in parents:
            target = target.setdefault(parent, {})
        target[name] = value
    reply = policy.infer(observation)
    replies[f"{index}|actions"] = reply["actions"]
    replies[f"{index}|keys"] = np.array(sorted(reply))
    replies[f"{index}|timing"] = np.array(json.dumps([reply["policy_timing"], reply["server_timing"]]))
policy.reset()
np.savez(replies_file, websockets=np.array(websockets.__version__), **replies)
"""


class OpenpiClient:
    """Runs the released client in a fresh interpreter that sees nothing of this project."""

    def __init__(self, site: pathlib.Path) -> None:
        self._site = site

    def infer(
        self, port: int, observations: Sequence[Mapping[str, Any]], folder: pathlib.Path
    ) -> dict[str, Any]:
        """Send the observations one after the other over one connection.

        Returns:
            `metadata`, `websockets` (version), and per index `<i>|actions`, `<i>|keys`, `<i>|timing`.
        """
        flat: dict[str, Any] = {"count": np.array(len(observations))}
        for index, observation in enumerate(observations):
            flat.update(_flatten(str(index), observation))
        np.savez(folder / "requests.npz", **flat)
        result = subprocess.run(
            [sys.executable, "-S", "-W", "ignore", "-c", _DRIVER, str(port), "requests.npz", "replies.npz"],
            env={"PATH": os.environ.get("PATH", ""), "PYTHONPATH": str(self._site)},
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert result.returncode == 0, result.stderr
        with np.load(folder / "replies.npz") as replies:
            return {
                key: json.loads(str(replies[key])) if key.endswith(("metadata", "timing")) else replies[key]
                for key in replies.files
            }


def install(cache: pathlib.Path, websockets: str) -> OpenpiClient:
    """Install openpi-client beside one `websockets` version; skips the test where no index is reached."""
    site = (
        cache
        / f"openpi-{CLIENT_VERSION}-websockets-{websockets}-py{sys.version_info[0]}{sys.version_info[1]}"
    )
    if not (site / "complete").exists():
        # numpy<2 as the client asks, where this Python has such wheels; it declares no typing_extensions.
        numpy = "numpy<2" if sys.version_info < (3, 13) else "numpy"
        # Its tree dependency has no wheels for each Python and is needed by the chunk broker only.
        for packages in (
            ["--no-deps", f"openpi-client=={CLIENT_VERSION}"],
            [f"websockets=={websockets}", "msgpack", numpy, "pillow", "typing_extensions"],
        ):
            result = subprocess.run(
                [sys.executable, "-m", "pip", "install", "-q", "--target", str(site), *packages],
                capture_output=True,
                text=True,
                check=False,
            )
            if result.returncode:
                pytest.skip(f"cannot install the released client: {result.stderr.strip().splitlines()[-1]}")
        (site / "complete").touch()
    return OpenpiClient(site)


def _flatten(prefix: str, tree: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}|{key}"
        flat.update(_flatten(path, value) if isinstance(value, Mapping) else {path: np.asarray(value)})
    return flat
