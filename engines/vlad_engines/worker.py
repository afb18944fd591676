"""The engine process: owns one device, answers the requests of the server that started it.

Started by the server as `python -m vlad_engines.worker SOCKET_FD MEMORY_FD SLOTS REQUEST_BYTES`.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from vlad_configs.errors import EngineError, ObservationError, VladError
from vlad_engines import worker_protocol as protocol

logger = logging.getLogger("vlad.worker")

MAX_REASON_BYTES = protocol.MAX_PACKET_BYTES - 1024
"""Of a start that failed; a checkpoint with a thousand odd tensors can have more to say."""

_CUT_MARK = "\n[... too long to show in full]"

ReportProgress = Callable[[str, float], None]


class Policy(Protocol):
    """What a worker serves; `UnifiedPolicy` is one."""

    @property
    def metadata(self) -> Mapping[str, Any]:
        """For clients; msgpack types only."""
        ...

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        """`{"actions": float64 [H, D], "policy_timing": {name: milliseconds}}`."""
        ...


PolicyFactory = Callable[[Mapping[str, Any], ReportProgress], Policy]


def serve(make_policy: PolicyFactory, arguments: list[str]) -> int:
    """Build a policy and answer requests until the server goes away.

    Args:
        make_policy: called once with the options of `Configure` and a progress report.
        arguments: socket fd, memory fd, number of slots, bytes of a request.

    Returns:
        The exit code of the process.
    """
    socket_fd, memory_fd, slot_count, request_bytes = (int(argument) for argument in arguments)
    link = socket.socket(fileno=socket_fd)
    slots = protocol.SharedSlots(memory_fd, slot_count, request_bytes)
    # The server decides when a worker ends; a Ctrl-C at the terminal reaches both processes.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_exit_with_server, args=(socket_fd,), daemon=True).start()

    configure = _receive(link)
    assert isinstance(configure, protocol.Configure)

    def report(stage: str, fraction: float) -> None:
        _send(link, protocol.Progress(stage, fraction))

    try:
        policy = make_policy(configure.options, report)
    except VladError as error:
        _send(link, protocol.StartFailed(_at_most(MAX_REASON_BYTES, str(error))))
        return 1
    except Exception as error:
        logger.exception("the policy could not be built")
        _send(link, protocol.StartFailed(_at_most(MAX_REASON_BYTES, f"{type(error).__name__}: {error}")))
        return 1
    _send(link, protocol.Ready(dict(policy.metadata)))
    while (message := _receive(link)) is not None:
        assert isinstance(message, protocol.Infer)
        _send(link, _answer(policy, slots, message))
    return 0


def _answer(policy: Policy, slots: protocol.SharedSlots, request: protocol.Infer) -> protocol.Message:
    slots.begin(request.slot)
    started = time.perf_counter()
    try:
        result = policy.infer(slots.load_observation(request.observation))
        seconds = time.perf_counter() - started
        shape = slots.store_chunk(request.slot, result["actions"])
        return protocol.Chunk(request.request_id, shape, started, seconds, dict(result["policy_timing"]))
    except ObservationError as error:
        return protocol.Refused(request.request_id, error.key, error.expected, error.received)
    except EngineError as error:
        return protocol.Failed(request.request_id, _at_most(4096, str(error)), "")
    except Exception as error:
        reason = _at_most(4096, f"{type(error).__name__}: {error}")
        return protocol.Failed(request.request_id, reason, traceback.format_exc()[-32768:])


def _at_most(limit: int, text: str) -> str:
    """The text cut to `limit` bytes of UTF-8, and a mark where something is gone."""
    encoded = text.encode(errors="replace")
    return encoded[:limit].decode(errors="ignore") + _CUT_MARK * (len(encoded) > limit)


def _send(link: socket.socket, message: protocol.Message) -> None:
    link.sendall(protocol.pack_message(message))


def _receive(link: socket.socket) -> protocol.Message | None:
    packet = link.recv(protocol.MAX_PACKET_BYTES)
    return protocol.unpack_message(packet) if packet else None


def _exit_with_server(socket_fd: int) -> None:
    """End the process the moment the server is gone, even inside a long build or inference."""
    poll = select.poll()
    poll.register(socket_fd, 0)
    poll.poll()
    os._exit(0)


def _unified_policy(options: Mapping[str, Any], report: ReportProgress) -> Policy:
    report("importing torch", 0.0)
    from vlad_engines.unified_policy import UnifiedPolicy

    policy_options = dict(options)
    allow_low_fidelity = policy_options.pop("allow_low_fidelity", False)
    policy = UnifiedPolicy(**policy_options, progress=report)
    policy.warm_up(report)
    policy.verify_fidelity(allow_low_fidelity=allow_low_fidelity, progress=report)
    return _ServedPolicy(policy)


class _ServedPolicy:
    """Takes the reserved request keys of `docs/protocol.md` out of an observation."""

    def __init__(self, policy: Any) -> None:
        self._policy = policy

    @property
    def metadata(self) -> Mapping[str, Any]:
        metadata: Mapping[str, Any] = self._policy.metadata
        return metadata

    def infer(self, observation: Mapping[str, Any]) -> Mapping[str, Any]:
        observation = dict(observation)
        noise = observation.pop("vlad/noise", None)
        seed = observation.pop("vlad/seed", None)
        result: Mapping[str, Any] = self._policy.infer(observation, noise=noise, seed=seed)
        return result


def main() -> None:
    """Entry point of the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(serve(_unified_policy, sys.argv[1:]))


if __name__ == "__main__":
    main()
