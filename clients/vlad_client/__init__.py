"""The robot's side of a pi0 / pi0.5 policy server.

Needs numpy, msgpack and websockets, nothing else, so that it installs beside any robot's software.
"""

from vlad_client.action_chunk_broker import ActionChunkBroker
from vlad_client.async_chunk_runner import AsyncChunkRunner
from vlad_client.async_streaming_client import AsyncStreamingClient
from vlad_client.base_policy import BasePolicy
from vlad_client.chunk_runner import ChunkRunner
from vlad_client.errors import (
    PolicyClientError,
    PolicyConnectionError,
    PolicyServerError,
    PolicyTimeoutError,
    WireError,
)
from vlad_client.observation_extras import ObservationExtras, RtcRequest
from vlad_client.real_time_config import RealTimeConfig, RtcOptions
from vlad_client.run_record import RunRecord, RunRecorder
from vlad_client.runner_core import RunnerStatus
from vlad_client.stream_events import Chunk, Connected, ConnectionLost, Refusal
from vlad_client.streaming_client import StreamingClient
from vlad_client.websocket_client_policy import WebsocketClientPolicy

__all__ = [
    "ActionChunkBroker",
    "AsyncChunkRunner",
    "AsyncStreamingClient",
    "BasePolicy",
    "Chunk",
    "ChunkRunner",
    "Connected",
    "ConnectionLost",
    "ObservationExtras",
    "PolicyClientError",
    "PolicyConnectionError",
    "PolicyServerError",
    "PolicyTimeoutError",
    "RealTimeConfig",
    "Refusal",
    "RtcOptions",
    "RtcRequest",
    "RunRecord",
    "RunRecorder",
    "RunnerStatus",
    "StreamingClient",
    "WebsocketClientPolicy",
    "WireError",
]

__version__ = "0.1.0"
