"""What both chunk runners do between their threads or tasks: events to schedule, schedule to requests."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

from vlad_client.capabilities import RtcCapabilities, ServerCapabilities
from vlad_client.chunk_schedule import ChunkRequest, ChunkSchedule, Step
from vlad_client.errors import PolicyServerError
from vlad_client.observation_extras import ObservationExtras, RtcRequest
from vlad_client.real_time_config import RealTimeConfig
from vlad_client.run_record import RunRecorder
from vlad_client.stream_events import Chunk, Connected, ConnectionLost, Refusal, StreamEvent

logger = logging.getLogger("vlad_client")

MAX_WARNINGS = 20
"""Different warnings of the server that are passed on to the log, each once."""


@dataclasses.dataclass(frozen=True)
class RunnerStatus:
    """How the run is going; counts are those since the runner was made.

    Attributes:
        in_episode: whether actions are executed.
        real_time_chunking: whether chunks continue each other, by the server's capabilities.
        index: actions executed in this episode.
        remaining: actions left.
        latency_s: what a chunk takes from the observation on, as the next one is expected to; None before
            the first.
        actions, holds: control steps with and without an action; before the first chunk of an episode
            neither counts.
        chunks, continued: chunks executed, and those of them that the server computed as continuations.
        useless_chunks: chunks that came too late for any of their actions, or that continue one which
            another has replaced meanwhile.
        refusals, losses: observations refused by the server, and connections lost.
        last_error: the latest refusal or loss, in words.
    """

    in_episode: bool = False
    real_time_chunking: bool = False
    index: int = 0
    remaining: int = 0
    latency_s: float | None = None
    actions: int = 0
    holds: int = 0
    chunks: int = 0
    continued: int = 0
    useless_chunks: int = 0
    refusals: int = 0
    losses: int = 0
    last_error: str | None = None


class RunnerCore:
    """A schedule, told about by stream events. Not thread-safe; `now` in seconds."""

    def __init__(self, config: RealTimeConfig, recorder: RunRecorder | None) -> None:
        self.schedule = ChunkSchedule(config)
        self._config = config
        self._recorder = recorder
        self._rtc: RtcCapabilities | None = None
        self._status = RunnerStatus()
        self._warned: set[str] = set()

    def status(self) -> RunnerStatus:
        """How the run is going."""
        schedule = self.schedule
        return dataclasses.replace(
            self._status,
            in_episode=schedule.in_episode,
            real_time_chunking=self._rtc is not None and self._config.rtc is not None,
            index=schedule.index,
            remaining=schedule.remaining,
            latency_s=schedule.latency_s,
        )

    def step(self, now: float) -> Step:
        """Take the action of one control step."""
        step = self.schedule.step()
        if step.kind == "action":
            self._count("actions")
        elif step.kind == "hold":
            self._count("holds")
        if self._recorder is not None and self.schedule.in_episode:
            self._recorder.add_step(now, step)
        return step

    def begin_request(
        self, now: float, number: int, capabilities: ServerCapabilities | None
    ) -> ObservationExtras:
        """Anchor a request at the present step; returns what goes with the observation taken now."""
        request = self.schedule.begin_request(now, number)
        return ObservationExtras(
            reset=request.reset,
            deadline_s=self._config.request_timeout_s,
            remaining=request.remaining,
            control_hz=self._config.control_hz,
            rtc=self._continuation(request, capabilities),
        )

    def handle(self, event: StreamEvent, now: float) -> None:
        """Take in what the stream received.

        Raises:
            PolicyServerError: if the server will never accept such observations.
        """
        if isinstance(event, Chunk):
            self._take_chunk(event, now)
        elif isinstance(event, Refusal):
            self._refused(event, now)
        elif isinstance(event, ConnectionLost):
            self._count("losses")
            self._note(event.reason)
            self.schedule.fail(_numbers(event.lost), now)
        else:
            self._connected(event)

    def send_failed(self, number: int, error: Exception, now: float) -> None:
        """Take note that an observation could not be sent."""
        self._note(str(error))
        self.schedule.fail([number], now)

    def _take_chunk(self, chunk: Chunk, now: float) -> None:
        for warning in chunk.warnings:
            if warning not in self._warned and len(self._warned) < MAX_WARNINGS:
                self._warned.add(warning)
                logger.warning("the server warns: %s", warning[:256])
        self.schedule.supersede(_numbers(chunk.superseded))
        (number,) = _numbers((chunk.observation_id,)) or (-1,)
        try:
            splice = self.schedule.accept(
                number, chunk.actions, now, chunk_id=chunk.chunk_id, continued=chunk.continued
            )
        except ValueError as error:
            self._note(f"unusable chunk: {error}")
            return
        if splice is None:
            self._count("useless_chunks")
            return
        self._count("chunks")
        if chunk.continued:
            self._count("continued")
        if self._recorder is not None:
            self._recorder.add_chunk(now, splice, chunk.actions)

    def _refused(self, refusal: Refusal, now: float) -> None:
        if refusal.code == "invalid":
            raise PolicyServerError(refusal.message)
        if refusal.code == "superseded":
            self.schedule.supersede(_numbers((refusal.observation_id,)))
            return
        self._count("refusals")
        self._note(f"{refusal.code}: {refusal.message}")
        self.schedule.fail(_numbers((refusal.observation_id,)), now)

    def _connected(self, event: Connected) -> None:
        self._rtc = None if event.capabilities is None else event.capabilities.rtc
        self.schedule.connected(continues=self._rtc is not None and self._config.rtc is not None)
        if self._config.rtc is None:
            logger.info("real-time chunking was not asked for: chunks are spliced as they come")
        elif self._rtc is None:
            logger.warning("the server offers no real-time chunking: chunks are spliced as they come")
        else:
            logger.info("the server offers real-time chunking: %s", ", ".join(self._rtc.modes))

    def _continuation(
        self, request: ChunkRequest, capabilities: ServerCapabilities | None
    ) -> RtcRequest | None:
        options = self._config.rtc
        offered = capabilities is not None and capabilities.rtc is not None
        if options is None or not offered or request.previous is None:
            return None
        if request.left is None:
            named: dict[str, Any] = {"prev_chunk_id": request.previous, "executed": request.executed}
        elif request.delay is None:
            return None
        else:
            named = {"action_prefix": request.left}
        return RtcRequest(
            **named,
            delay=request.delay,
            prefix_end=options.prefix_end,
            mode=options.mode,
            beta=options.beta,
            schedule=options.schedule,
        )

    def _count(self, name: str) -> None:
        self._status = dataclasses.replace(self._status, **{name: getattr(self._status, name) + 1})

    def _note(self, error: str) -> None:
        logger.info("%s", error)
        self._status = dataclasses.replace(self._status, last_error=error)


def _numbers(ids: tuple[object, ...]) -> list[int]:
    """Ids that can be ours: the schedule's requests are numbered."""
    return [number for number in ids if isinstance(number, int)]
