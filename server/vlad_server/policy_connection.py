"""A websocket connection that understands HEAD, which `websockets` before 17 cuts off unanswered.

Python 3.10 has nothing newer than websockets 16; with this, load balancers get their answer on every Python.
"""

from __future__ import annotations

from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Response

_HEAD, _GET = b"HEAD ", b"GET "


class PolicyConnection(ServerConnection):
    """Reads a HEAD request as GET and remembers it; `without_body` then makes the answer HEAD's."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._has_received = False
        self.is_head = False

    def data_received(self, data: bytes) -> None:
        """Called by the transport with what came over the network."""
        if not self._has_received:
            self._has_received = True
            if data.startswith(_HEAD):
                self.is_head = True
                data = _GET + data[len(_HEAD) :]
        super().data_received(data)

    def without_body(self, response: Response) -> Response:
        """The response as this request may get it: its headers stay, and speak of GET's body."""
        if self.is_head:
            response.body = b""
        return response
