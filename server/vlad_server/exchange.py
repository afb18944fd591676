"""One request and its reply: what was asked, by whom, when, and the frames that answer it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from vlad_server import continuations, wire
from vlad_server.doctor.examination import Finding
from vlad_server.outcomes import Reply, code_of
from vlad_server.request_options import ObservationId, RequestOptions
from vlad_server.scheduler import Terms
from vlad_server.sessions import Session


@dataclasses.dataclass(eq=False)
class Exchange:
    """A request that is being answered. Times are time.perf_counter().

    Attributes:
        observation: as it came; with arrays for its compressed images, once they are decoded; let go of as
            soon as the engine has it, where nobody watches.
        session: whose request it is.
        received: when its frame was complete.
        number: counts the requests of a connection.
        is_roboarena: True where the reply is RoboArena's.
        decoded: when it was found to be usable.
        request_id: of the dispatcher; None while it is not with it.
        warnings: what a client that reads warnings should know of its chunk.
        cameras: which of those that may be absent it has.
        note: why the chunk does not continue the one before, as asked; None where there is nothing to say.
        frame_received: the request as it came, for the recorder.
        seed: of the chunk's noise, where the request brings no noise of its own and is recorded.
        continuation: what the policy was told of the chunk before.
        findings: what is probably wrong with the observation.
    """

    observation: Mapping[str, Any]
    options: RequestOptions
    session: Session
    received: float
    number: int
    is_roboarena: bool = False
    decoded: float = 0.0
    request_id: int | None = None
    cameras: tuple[str, ...] = ()
    note: str | None = None
    warnings: tuple[str, ...] = ()
    frame_received: bytes | bytearray | memoryview = b""
    seed: int | None = None
    continuation: Mapping[str, Any] | None = None
    findings: Sequence[Finding] = ()

    @property
    def expires(self) -> float | None:
        """When its result becomes useless; None for never."""
        return None if self.options.deadline_s is None else self.received + self.options.deadline_s

    @property
    def terms(self) -> Terms:
        """What the scheduler needs to know."""
        return Terms(self.session, self.received, self.options.slack_s, self.expires, self.cameras)

    def message(self, reply: Reply, now: float, previous_total_ms: float | None) -> dict[str, Any]:
        """The reply as a map; the session then knows the chunk."""
        server_timing = {
            "infer_ms": 1e3 * reply.infer_s,
            "decode_ms": 1e3 * (self.decoded - self.received),
            "queue_ms": 1e3 * max(0.0, reply.started - self.decoded),
            "total_ms": 1e3 * (now - self.received),
        }
        if previous_total_ms is not None:
            server_timing["prev_total_ms"] = previous_total_ms
        message: dict[str, Any] = {
            "actions": reply.actions,
            "policy_timing": dict(reply.policy_timing),
            "server_timing": server_timing,
        }
        if self.options.extended:
            message |= self._additions(reply, now)
        return message

    def frame(self, message: Mapping[str, Any]) -> bytes:
        """A reply as the client's dialect wants it."""
        return wire.encode(message["actions"] if self.is_roboarena else message)

    def _additions(self, reply: Reply, now: float) -> dict[str, Any]:
        rtc = continuations.report(reply.rtc, self.options, self.note)
        superseded, untold = self.session.take_superseded()
        warnings = [*self.warnings, *([rtc["note"]] if rtc and rtc["note"] else [])]
        if untold:
            warnings.append(f"{untold} more observations were superseded")
        return {
            "chunk_id": self.session.keep(reply.model_actions, reply.anchor_state),
            "session": self.session.session_id,
            "observation_id": self.options.observation_id,
            "observation_age_ms": 1e3 * (reply.started - self.received),
            "superseded": superseded,
            "warnings": warnings,
            "rtc": rtc,
            "deadline_missed": self.expires is not None and now > self.expires,
        }


def error_frame(error: Exception, text: str, observation_id: ObservationId | None) -> bytes | str:
    """What tells a client of an error: a text frame, or a map where its observations have ids."""
    if observation_id is None:
        return text
    return wire.encode({"error": text, "code": code_of(error), "observation_id": observation_id})
