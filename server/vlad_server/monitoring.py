"""The metrics port: `/metrics` and the health paths, served by a thread of its own.

Rendering takes about a millisecond; on the event loop it would be the robots'.
"""

from __future__ import annotations

import functools
import http.server
import threading
from http import HTTPStatus
from typing import Any

from prometheus_client import CollectorRegistry

from vlad_server import health
from vlad_server.exposition import CONTENT_TYPE, Exposition
from vlad_server.readiness import Readiness


class MonitoringServer:
    """HTTP server on a daemon thread; up from the first second to the very last.

    Raises:
        OSError: where the address cannot be bound.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        registry: CollectorRegistry,
        readiness: Readiness,
        pulse: health.Pulse,
    ) -> None:
        handler = functools.partial(_MonitoringHandler, Exposition(registry), readiness, pulse)
        self._server = http.server.ThreadingHTTPServer((host, port), handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, name="monitoring", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _MonitoringHandler(http.server.BaseHTTPRequestHandler):
    timeout = 10

    def __init__(
        self, exposition: Exposition, readiness: Readiness, pulse: health.Pulse, *connection: Any
    ) -> None:
        self._exposition = exposition
        self._readiness = readiness
        self._pulse = pulse
        super().__init__(*connection)

    def do_GET(self) -> None:
        if self.path.partition("?")[0] == "/metrics":
            self._respond(HTTPStatus.OK, CONTENT_TYPE, self._exposition.render())
            return
        answer = health.answer(self.path, self._readiness, self._pulse)
        status, text = answer or (HTTPStatus.NOT_FOUND, "paths: /metrics /livez /readyz /healthz\n")
        self._respond(status, "text/plain; charset=utf-8", text.encode())

    def do_HEAD(self) -> None:
        self.do_GET()

    def _respond(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Probes come every few seconds; they are not worth a line each."""
