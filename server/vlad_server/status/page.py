"""The status page over HTTP: three files that hold no data, and one path that does and asks for the key.

Data is fetched, not streamed: the policy port speaks websocket, and answers plain HTTP with one response
and the end of the connection.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import importlib.resources
import json
import time
import urllib.parse
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from vlad_configs.serving import ServeConfig
from vlad_server.metrics import ServerMetrics
from vlad_server.readiness import Readiness
from vlad_server.status.board import StatusBoard
from vlad_server.status.snapshot import Snapshot, render
from vlad_server.version import daemon_version

DATA_PATH = "/status/data"
_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/status/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/status/page.css": ("page.css", "text/css; charset=utf-8"),
}

SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

MAX_RENDERING = 8
"""Answers that may be made at once; one takes about ten milliseconds of a thread."""

MAX_NAME_CHARACTERS = 256
SHOWN_METADATA = (
    *("environment", "family", "checkpoint", "layout", "config", "weights", "action_horizon", "action_dim"),
    *("num_denoising_steps", "backend", "components", "precision", "device", "batch_sizes", "fidelity"),
    "default_prompt",
)

Connections = Callable[[], Sequence[Mapping[str, Any]]]
Refusal = tuple[HTTPStatus, str]


class StatusPage:
    """Answers the paths of the status page.

    Args:
        connections: what there is to say of each open connection, as JSON types.
        refuse: from a request's headers to why it may not read the data; None where it may.
    """

    def __init__(
        self,
        board: StatusBoard,
        *,
        config: ServeConfig,
        readiness: Readiness,
        metrics: ServerMetrics,
        connections: Connections,
        refuse: Callable[[Headers], Refusal | None],
    ) -> None:
        self._board = board
        self._config = config
        self._readiness = readiness
        self._metrics = metrics
        self._connections = connections
        self._refuse = refuse
        self._version = daemon_version()
        self._started = time.monotonic()
        folder = importlib.resources.files(__package__) / "files"
        self._files = {path: ((folder / name).read_bytes(), kind) for path, (name, kind) in _FILES.items()}
        self._rendering = 0
        self._renderer = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="status")

    def answer(self, request: Request) -> Response | Awaitable[Response] | None:
        """The answer to a plain HTTP request; None where its path is none of the page's."""
        path, _, query = request.path.partition("?")
        if path in self._files:
            body, kind = self._files[path]
            return _response(HTTPStatus.OK, body, kind)
        if path != DATA_PATH:
            return None
        if (refusal := self._refuse(request.headers)) is not None:
            return _refusal(*refusal)
        if self._rendering >= MAX_RENDERING:
            return _refusal(HTTPStatus.SERVICE_UNAVAILABLE, "too many are watching\n")
        fields = dict(urllib.parse.parse_qsl(query, max_num_fields=8))
        robot, after = fields.get("robot"), fields.get("after", "0")
        if not after.isdecimal() or len(after) > 15 or (robot and len(robot) > MAX_NAME_CHARACTERS):
            return _refusal(HTTPStatus.BAD_REQUEST, "after must be a number, and robot a name\n")
        return self._data(robot, int(after))

    def close(self) -> None:
        """Stop the thread and forget what was kept."""
        self._board.close()
        self._renderer.shutdown(wait=False, cancel_futures=True)

    async def _data(self, robot: str | None, after: int) -> Response:
        self._board.watch(robot)
        snapshot = self._snapshot(robot, after)
        self._rendering += 1
        try:
            body = await asyncio.get_running_loop().run_in_executor(self._renderer, render, snapshot)
        finally:
            self._rendering -= 1
        return _response(HTTPStatus.OK, body, "application/json")

    def _snapshot(self, robot: str | None, after: int) -> Snapshot:
        samples, skipped = self._board.samples_after(after)
        return Snapshot(
            now=time.monotonic(),
            facts=self._facts(),
            samples=samples,
            skipped=skipped,
            last_number=self._board.last_number,
            refusals=self._board.refusals,
            robot=robot,
            look=self._board.look_at(robot),
        )

    def _facts(self) -> dict[str, Any]:
        readiness, metrics = self._readiness, self._metrics
        return {
            "version": self._version,
            "state": readiness.state,
            "explanation": readiness.explanation,
            "up_s": time.monotonic() - self._started,
            "environment": self._config.environment,
            "policy": {key: readiness.metadata[key] for key in SHOWN_METADATA if key in readiness.metadata},
            "requests": metrics.request_counts(),
            "workers": metrics.worker_counts(),
            "connections": list(self._connections()),
        }


def _refusal(status: HTTPStatus, text: str) -> Response:
    return _response(status, json.dumps({"error": text.strip()}).encode(), "application/json")


def _response(status: HTTPStatus, body: bytes, content_type: str) -> Response:
    headers = Headers({"Content-Type": content_type, "Content-Length": str(len(body)), "Connection": "close"})
    for name, value in SECURITY_HEADERS.items():
        headers[name] = value
    return Response(status.value, status.phrase, headers, body)
