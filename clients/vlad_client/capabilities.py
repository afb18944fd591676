"""What a server says that it can do beyond openpi's protocol."""

from __future__ import annotations

import dataclasses
from typing import Any, Mapping


@dataclasses.dataclass(frozen=True)
class RtcCapabilities:
    """Real-time chunking, as the server's backend offers it.

    Attributes:
        modes: what a request may ask for, best known first or not: only `default_mode` is a choice.
        default_mode: what `auto` becomes.
        trained_max_delay: longest delay that the checkpoint was trained for; None for one that was not.
    """

    modes: tuple[str, ...]
    default_mode: str | None
    trained_max_delay: int | None


@dataclasses.dataclass(frozen=True)
class ServerCapabilities:
    """The `vlad` map of the metadata.

    Attributes:
        streaming: whether a fresher observation replaces one that waits on the server.
        deadlines: whether requests may expire.
        session_ttl_s: how long the server remembers a robot that lost its connection.
        image_encodings: encodings of images besides plain arrays.
        rtc: None where chunks are always plain.
    """

    streaming: bool
    deadlines: bool
    session_ttl_s: float
    image_encodings: tuple[str, ...]
    rtc: RtcCapabilities | None


def read_capabilities(metadata: Mapping[str, Any]) -> ServerCapabilities | None:
    """Read the server's metadata; None for one that says nothing, such as openpi's.

    Unknown keys are ignored, and what is missing is taken as not offered: servers grow.
    """
    offered = metadata.get("vlad")
    if not isinstance(offered, dict):
        return None
    return ServerCapabilities(
        streaming=offered.get("streaming") is True,
        deadlines=offered.get("deadlines") is True,
        session_ttl_s=float(offered.get("session_ttl_s") or 0.0),
        image_encodings=_names(offered.get("image_encodings")),
        rtc=_read_rtc(offered.get("rtc")),
    )


def _read_rtc(offered: Any) -> RtcCapabilities | None:
    if not isinstance(offered, dict):
        return None
    return RtcCapabilities(
        modes=_names(offered.get("modes")),
        default_mode=offered.get("default_mode"),
        trained_max_delay=offered.get("trained_max_delay"),
    )


def _names(value: Any) -> tuple[str, ...]:
    return tuple(str(name) for name in value) if isinstance(value, (list, tuple)) else ()
