"""The robot's side of a pi0 / pi0.5 policy server.

Needs numpy, msgpack and websockets, nothing else, so that it installs beside any robot's software.
"""

from vlad_client.action_chunk_broker import ActionChunkBroker
from vlad_client.base_policy import BasePolicy
from vlad_client.errors import (
    PolicyClientError,
    PolicyConnectionError,
    PolicyServerError,
    PolicyTimeoutError,
    WireError,
)
from vlad_client.websocket_client_policy import WebsocketClientPolicy

__all__ = [
    "ActionChunkBroker",
    "BasePolicy",
    "PolicyClientError",
    "PolicyConnectionError",
    "PolicyServerError",
    "PolicyTimeoutError",
    "WebsocketClientPolicy",
    "WireError",
]

__version__ = "0.1.0"
