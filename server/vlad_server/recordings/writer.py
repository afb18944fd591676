"""Writes exchanges to MCAP files that Foxglove opens, one after the other as they grow."""

from __future__ import annotations

import dataclasses
import datetime
import json
import logging
import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import IO, Any

import numpy as np
from mcap.writer import CompressionType, Writer

from vlad_configs.environments import ENVIRONMENTS, Environment, prompt_text
from vlad_configs.noise import seeded_noise
from vlad_server import roboarena, wire
from vlad_server.recordings import foxglove
from vlad_server.recordings.exchange import EXCHANGE_TOPIC, METADATA_NAME, RecordedExchange, to_bytes
from vlad_server.recordings.foxglove import ViewMessage

logger = logging.getLogger("vlad.recorder")

UNNAMED = "robot"
"""Stands for the session in the topics of robots that do not name themselves."""

MAX_NAMED_SESSIONS = 64
"""Of a file; robots beyond share the topics of those without a name."""

_CHUNK_BYTES = 64 << 10
"""Less than a request with raw images: each closes a chunk, and a cut costs no more than one."""


class RecordingWriter:
    """Writes to `vlad-<UTC time>-<number>.mcap` in a directory; the next file begins where one is full.

    A file that is cut off at any byte stays readable up to its last complete chunk. Not thread-safe.

    Args:
        directory: exists already.
        environment: whose requests come, a name of `ENVIRONMENTS`.
        file_bytes: size at which a file is full; the last exchange may go beyond it.
    """

    def __init__(self, directory: pathlib.Path, environment: str, file_bytes: int) -> None:
        self._directory = directory
        self._robot = ENVIRONMENTS[environment]
        self._file_bytes = file_bytes
        self._policy: Mapping[str, Any] = {}
        self._file: _OpenFile | None = None
        self._files = 0

    def set_policy(self, metadata: Mapping[str, Any]) -> None:
        """Tell which policy answers from here on; a new file begins with the next exchange."""
        self.close()
        self._policy = metadata

    def write(self, exchange: RecordedExchange) -> None:
        """Append an exchange.

        Raises:
            OSError: where the disk does not take it; what was written before stays readable.
        """
        if self._file is None:
            self._file = self._begin_file(exchange.received_ns)
        file = self._file
        complete = file.size()
        try:
            exchange = dataclasses.replace(exchange, noise=self._noise(exchange))
            for message in _views(exchange, self._robot):
                file.add_view(message, self._prefix(file, exchange))
            file.add_exchange(exchange)
        except OSError:
            self._file = None
            file.cut(complete)
            raise
        if file.size() >= self._file_bytes:
            self.close()

    def close(self) -> None:
        """Complete the open file with its index.

        Raises:
            OSError: where the disk does not take it; the file stays readable without.
        """
        file, self._file = self._file, None
        if file is not None:
            file.finish()

    def _begin_file(self, time_ns: int) -> _OpenFile:
        moment = datetime.datetime.fromtimestamp(time_ns / 1e9, datetime.timezone.utc)
        while True:
            self._files += 1
            path = self._directory / f"vlad-{moment:%Y%m%dT%H%M%SZ}-{self._files:04d}.mcap"
            try:
                stream = path.open("xb")
            except FileExistsError:
                continue
            about = {"environment": self._robot.name, "policy": dict(self._policy)}
            return _OpenFile(path, stream, about)

    def _prefix(self, file: _OpenFile, exchange: RecordedExchange) -> str:
        if exchange.session is None:
            return UNNAMED
        name = re.sub(r"[^\w.-]", "_", exchange.session)
        if name not in file.sessions and len(file.sessions) >= MAX_NAMED_SESSIONS:
            return UNNAMED
        file.sessions.add(name)
        return name

    def _noise(self, exchange: RecordedExchange) -> Any:
        shape = self._policy.get("noise_shape")
        if exchange.seed is None or shape is None:
            return None
        return seeded_noise(exchange.seed, tuple(shape))


class _OpenFile:
    """One MCAP file that is being written."""

    def __init__(self, path: pathlib.Path, stream: IO[bytes], about: Mapping[str, Any]) -> None:
        self.path = path
        self.sessions: set[str] = set()
        self._stream = stream
        self._writer = Writer(stream, chunk_size=_CHUNK_BYTES, compression=CompressionType.ZSTD)
        self._channels: dict[str, int] = {}
        try:
            self._writer.start(profile="", library="vlad")
            self._writer.add_metadata(
                METADATA_NAME, {name: json.dumps(value) for name, value in about.items()}
            )
            self._schemas = {
                name: self._writer.register_schema(name, "jsonschema", json.dumps(schema).encode())
                for name, schema in foxglove.SCHEMAS.items()
            }
            self._exchanges = self._writer.register_channel(EXCHANGE_TOPIC, "msgpack", 0)
            stream.flush()
        except OSError:
            self.cut(0)
            raise

    def size(self) -> int:
        """Bytes so far."""
        return self._stream.tell()

    def add_view(self, message: ViewMessage, prefix: str) -> None:
        topic = f"/{prefix}/{message.topic}"
        channel = self._channels.get(topic)
        if channel is None:
            channel = self._writer.register_channel(topic, "json", self._schemas[message.schema])
            self._channels[topic] = channel
        self._writer.add_message(channel, message.time_ns, message.to_json(), message.time_ns)

    def add_exchange(self, exchange: RecordedExchange) -> None:
        data = to_bytes(exchange)
        self._writer.add_message(
            self._exchanges, exchange.replied_ns, data, exchange.replied_ns, exchange.number & 0xFFFFFFFF
        )
        self._stream.flush()

    def finish(self) -> None:
        complete = self.size()
        try:
            self._writer.finish()  # type: ignore[no-untyped-call]
            self._stream.close()
        except OSError:
            self.cut(complete)
            raise

    def cut(self, size: int) -> None:
        """Give up at a size up to which all is well; nothing can be written any more."""
        # The buffer still holds what the disk refused: close() tries that again, and fails again.
        descriptor = os.dup(self._stream.fileno())
        try:
            self._stream.close()
        except OSError as error:
            logger.debug("%s: %s", self.path, error)
        finally:
            os.ftruncate(descriptor, size)
            os.close(descriptor)


def _views(exchange: RecordedExchange, robot: Environment) -> Iterator[ViewMessage]:
    """What there is to look at; the request has been checked by the server."""
    request = wire.decode(exchange.request)
    if roboarena.is_roboarena(request):
        request = roboarena.observation_of(request, robot)
    number, received = exchange.number, exchange.received_ns
    for camera, image in foxglove.pictures_of(request, robot):
        yield foxglove.picture_message(camera, image, received)
    state = np.concatenate([np.ravel(request[vector.key]) for vector in robot.state])
    prompt = prompt_text(request["prompt"]) if "prompt" in request else ""
    content = {"number": number, "prompt": prompt, "state": state.tolist()}
    yield ViewMessage("observation", "vlad.Observation", received, content)
    if exchange.error is not None:
        failure = {"number": number, "error": exchange.error}
        yield ViewMessage("failure", "vlad.Failure", exchange.replied_ns, failure)
        return
    reply = wire.decode(exchange.reply)
    actions = reply["actions"].tolist()
    chunk = {"number": number, "first": actions[0] if actions else [], "actions": actions}
    yield ViewMessage("chunk", "vlad.ActionChunk", exchange.replied_ns, chunk)
    timings = {"number": number, "server": reply["server_timing"], "policy": reply["policy_timing"]}
    yield ViewMessage("timings", "vlad.Timings", exchange.replied_ns, timings)
