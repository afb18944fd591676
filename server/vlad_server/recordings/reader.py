"""Reads recordings, also ones that were cut off: the one reader of whatever uses them."""

from __future__ import annotations

import dataclasses
import json
import logging
import pathlib
import struct
from collections.abc import Iterator
from typing import Any

from vlad_configs.environments import ENVIRONMENTS, Environment
from vlad_configs.errors import ConfigError, ObservationError
from vlad_server import images, roboarena, wire
from vlad_server.recordings.exchange import EXCHANGE_TOPIC, METADATA_NAME, RecordedExchange, from_bytes

logger = logging.getLogger("vlad.recordings")

SUFFIX = ".mcap"
MAX_IMAGE_BYTES = 1 << 30
"""Of the decoded images of one request; the server that recorded it had a tighter limit."""

_RECORD_LIMIT = 2 << 30


@dataclasses.dataclass(frozen=True)
class Recording:
    """One file, opened.

    Attributes:
        path: of the file.
        robot: whose requests it holds.
        policy: metadata of the policy that answered them; empty where it is not known.
    """

    path: pathlib.Path
    robot: Environment
    policy: dict[str, Any]

    def exchanges(self) -> Iterator[RecordedExchange]:
        """The exchanges in the order in which they were written, up to where the file was cut.

        Raises:
            ConfigError: for a file that is damaged in another way.
        """
        from mcap.records import Channel, Message

        exchange_channels: set[int] = set()
        for record in _records(self.path):
            if isinstance(record, Channel) and record.topic == EXCHANGE_TOPIC:
                exchange_channels.add(record.id)
            elif isinstance(record, Message) and record.channel_id in exchange_channels:
                try:
                    yield from_bytes(record.data)
                except ValueError as error:
                    raise ConfigError(f"{self.path}: {error}") from error

    def observation(self, exchange: RecordedExchange) -> dict[str, Any]:
        """The request of an exchange as the policy got it, with arrays in the place of compressed images.

        Keys of the protocol (`vlad/...`) are kept.

        Raises:
            ConfigError: where it does not fit the robot, which no recorded request should.
        """
        try:
            request = wire.decode(exchange.request)
            if roboarena.is_roboarena(request):
                request = roboarena.observation_of(request, self.robot)
            if images.has_encoded_images(request, self.robot):
                request = images.decode_images(request, self.robot, max_bytes=MAX_IMAGE_BYTES)
            self.robot.check(request, prompt_optional=True)
        except (wire.WireError, ObservationError) as error:
            raise ConfigError(f"{self.path}, exchange {exchange.number}: {error}") from error
        return request

    def reply(self, exchange: RecordedExchange) -> dict[str, Any] | None:
        """The reply map of an exchange; None where the engine failed.

        Raises:
            ConfigError: for a reply that cannot be read.
        """
        if exchange.error is not None:
            return None
        try:
            return wire.decode(exchange.reply)
        except wire.WireError as error:
            raise ConfigError(f"{self.path}, reply {exchange.number}: {error}") from error


def open_recording(path: str | pathlib.Path) -> Recording:
    """Open a file that `serve_policy --record` wrote.

    Raises:
        ConfigError: for any other file, and where the package mcap is missing.
    """
    path = pathlib.Path(path)
    for name, values in _metadata(path):
        if name != METADATA_NAME:
            continue
        try:
            about = {key: json.loads(value) for key, value in values.items()}
            return Recording(path, ENVIRONMENTS[about["environment"]], dict(about["policy"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} says of its robot what this program does not know: {error!r}"
            ) from error
    raise ConfigError(f"{path} is no recording of serve_policy --record")


def recorded_requests(
    path: str | pathlib.Path, environment: Environment, at_most: int
) -> tuple[dict[str, Any], ...]:
    """The robot's keys of requests in a recording: observations to calibrate or verify with.

    Args:
        at_most: how many, spread evenly over the file; all of them where it holds fewer.

    Raises:
        ConfigError: for a file that cannot be read, is of another robot, or holds no request.
    """
    recording = open_recording(path)
    if recording.robot.request_keys != environment.request_keys:
        raise ConfigError(f"{path} was recorded with {recording.robot.name}, not with {environment.name}")
    keys = environment.request_keys
    count = sum(1 for _ in recording.exchanges())
    chosen = {index * count // at_most for index in range(at_most)} if count > at_most else None
    requests = []
    for index, exchange in enumerate(recording.exchanges()):
        if chosen is not None and index not in chosen:
            continue
        observation = recording.observation(exchange)
        request = {key: value for key, value in observation.items() if key in keys}
        default = recording.policy.get("default_prompt")
        if "prompt" not in request and default is not None:
            request["prompt"] = default
        requests.append(request)
    if not requests:
        raise ConfigError(f"{path} holds no request")
    return tuple(requests)


def _metadata(path: pathlib.Path) -> Iterator[tuple[str, dict[str, str]]]:
    from mcap.records import Metadata

    for record in _records(path):
        if isinstance(record, Metadata):
            yield record.name, record.metadata


def _records(path: pathlib.Path) -> Iterator[Any]:
    """The records of a file up to its end, or to where it was cut.

    The library tells a cut record by many types of error, which depend on the byte where it is cut. What
    lies in the middle of a file and is damaged there is told apart by the bytes that still follow it.
    """
    try:
        from mcap.exceptions import McapError
        from mcap.stream_reader import StreamReader
    except ImportError as error:
        raise ConfigError("recordings need the package mcap: pip install 'vlad[record]'") from error
    import zstandard

    broken = (McapError, ValueError, struct.error, UnicodeDecodeError, zstandard.ZstdError)
    try:
        with path.open("rb") as file:
            records = StreamReader(file, validate_crcs=True, record_size_limit=_RECORD_LIMIT).records
            begun = False
            try:
                for record in records:
                    begun = True
                    yield record
            except broken as error:
                if not begun:
                    raise ConfigError(f"{path} is no MCAP file: {error or type(error).__name__}") from error
                if file.read(1):
                    raise ConfigError(f"{path} is damaged at byte {file.tell()}: {error}") from error
                logger.warning("%s was cut off; it is read up to there", path)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
