"""A robot's observations over some frames: what they hold, how fast a server answers, what it finds wrong."""

from __future__ import annotations

import collections
import dataclasses
import time
from typing import Any, Callable, Dict, Iterator, Mapping

import numpy as np

from vlad_client.errors import PolicyClientError

Infer = Callable[[Dict[str, Any]], Mapping[str, Any]]


class NoDoctorError(PolicyClientError):
    """The server does not examine observations."""


@dataclasses.dataclass
class ImageNotes:
    """Of one image key: shape and dtype of each frame, first and last picture, how often it changed."""

    kinds: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    first: Any = None
    last: Any = None
    changes: int = 0
    mean: float = 0.0


@dataclasses.dataclass(frozen=True)
class Checkup:
    """What was seen.

    Attributes:
        metadata: of the server.
        images: by request key; nested keys are joined with a slash.
        vectors: `[frames, width]` by request key.
        prompts: every instruction that was sent.
        warnings: how many frames had each (kind, key), with the latest text.
        round_trip_ms, server_ms: `[frames]`.
    """

    metadata: Mapping[str, Any]
    images: Mapping[str, ImageNotes]
    vectors: Mapping[str, Any]
    prompts: tuple[str, ...]
    warnings: Mapping[tuple[str, str], tuple[int, str]]
    round_trip_ms: Any
    server_ms: Any

    @property
    def frames(self) -> int:
        """How many observations were sent."""
        return len(self.round_trip_ms)

    def report(self) -> str:
        """The report that people read."""
        lines = [f"{self.frames} frames to {self._server()}", "", "images"]
        for key, notes in self.images.items():
            lines.append(
                f"  {key:<36} {', '.join(notes.kinds)}, mean {notes.mean:.0f} of 255, "
                f"new in {notes.changes} of {self.frames - 1} frames"
            )
        for key, values in self.vectors.items():
            lines += ["", f"{key}      lowest      highest    last"]
            lines += [
                f"  [{index}]{low:>16.4g}{high:>13.4g}{last:>11.4g}{'' if low != high else '   constant'}"
                for index, (low, high, last) in enumerate(
                    zip(values.min(axis=0), values.max(axis=0), values[-1])  # noqa: B905 - Python 3.8
                )
            ]
        lines += ["", *(f"prompt  {prompt!r}" for prompt in self.prompts), ""]
        p50, p99 = np.percentile(self.round_trip_ms, [50, 99])
        server = np.median(self.server_ms)
        lines.append(f"answer  {p50:.1f} ms (p50), {p99:.1f} ms (p99), of which the server {server:.1f} ms")
        lines += ["", *self._findings()]
        return "\n".join(lines)

    def _server(self) -> str:
        names = ("environment", "checkpoint", "backend", "precision")
        known = ", ".join(str(self.metadata[name]) for name in names if self.metadata.get(name))
        return known or "a server that does not say what it serves"

    def _findings(self) -> Iterator[str]:
        if not self.warnings:
            yield "nothing looks wrong"
        for (kind, key), (count, text) in sorted(self.warnings.items(), key=lambda item: -item[1][0]):
            yield f"WARNING {kind} in {count} of {self.frames} frames: {key or 'observation'}"
            yield f"        {text}"


def check_observations(
    observe: Callable[[], Mapping[str, Any]],
    infer: Infer,
    metadata: Mapping[str, Any],
    *,
    frames: int = 50,
    clock: Callable[[], float] = time.perf_counter,
) -> Checkup:
    """Send observations and collect what the server says; no action is executed.

    Args:
        observe: returns the robot's present observation, as its program sends it.
        infer: of a policy client.
        metadata: that the server sent.

    Raises:
        NoDoctorError: for a server that does not examine observations.
        PolicyClientError: where the server refuses one, or is lost.
    """
    additions = metadata.get("vlad")
    if not isinstance(additions, Mapping) or additions.get("doctor") is not True:
        raise NoDoctorError("this server does not examine observations: it is none of vlad's, or an old one")
    images: dict[str, ImageNotes] = {}
    vectors: dict[str, list[Any]] = {}
    prompts: dict[str, None] = {}
    warnings: dict[tuple[str, str], tuple[int, str]] = {}
    round_trip_ms, server_ms = [], []
    for _ in range(frames):
        observation = observe()
        _note(observation, images, vectors, prompts)
        started = clock()
        reply = infer({**observation, "vlad/doctor": True})
        round_trip_ms.append(1e3 * (clock() - started))
        server_ms.append(float(reply["server_timing"]["total_ms"]))
        for warning in reply["observation_warnings"]:
            place = (str(warning["kind"]), str(warning["key"]))
            warnings[place] = (warnings.get(place, (0, ""))[0] + 1, str(warning["text"]))
    return Checkup(
        metadata=metadata,
        images=images,
        vectors={key: np.array(values) for key, values in vectors.items()},
        prompts=tuple(prompts),
        warnings=warnings,
        round_trip_ms=np.array(round_trip_ms),
        server_ms=np.array(server_ms),
    )


def _note(
    observation: Mapping[str, Any],
    images: dict[str, ImageNotes],
    vectors: dict[str, list[Any]],
    prompts: dict[str, None],
    prefix: str = "",
) -> None:
    for name, value in observation.items():
        key = prefix + name
        if isinstance(value, Mapping):
            _note(value, images, vectors, prompts, f"{key}/")
        elif isinstance(value, np.ndarray) and value.ndim == 3:
            _note_image(images.setdefault(key, ImageNotes()), value)
        elif name == "prompt":
            prompts[str(value)] = None
        elif not isinstance(value, (str, bytes)) and not key.startswith("vlad/"):
            numbers = np.ravel(np.asarray(value))
            if numbers.dtype.kind in "fiu":
                vectors.setdefault(key, []).append(numbers.astype(float))


def _note_image(notes: ImageNotes, image: Any) -> None:
    notes.kinds[f"{'x'.join(map(str, image.shape))} {image.dtype}"] += 1
    if notes.first is None:
        notes.first = image.copy()
    elif not np.array_equal(image, notes.last):
        notes.changes += 1
    notes.last = image.copy()
    notes.mean = float(image.mean()) * (255.0 if image.dtype.kind == "f" else 1.0)
