"""The engine process: owns one device, answers the requests of the server that started it.

Started by the server as `python -m vlad_engines.worker SOCKET_FD MEMORY_FD SLOTS REQUEST_BYTES`.
"""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import logging
import os
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vlad_configs.errors import VladError
from vlad_configs.rtc import ChunkContinuation
from vlad_engines import worker_protocol as protocol
from vlad_engines.answering import Begun, Policy, answer, at_most
from vlad_engines.vitals import StartTimes, Vitals

logger = logging.getLogger("vlad.worker")

MAX_REASON_BYTES = protocol.MAX_PACKET_BYTES - 1024
"""Of a start that failed; a checkpoint with a thousand odd tensors can have more to say."""

ReportProgress = Callable[[str, float], None]


GIL_SWITCH_S = 0.0005

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
    # A server that takes this process for stuck sends SIGABRT: every thread's stack goes to the log.
    faulthandler.enable()
    threading.Thread(target=_exit_with_server, args=(socket_fd,), daemon=True).start()

    configure = _receive(link)
    assert isinstance(configure, protocol.Configure)

    def report(stage: str, fraction: float) -> None:
        _send(link, protocol.Progress(stage, fraction))

    try:
        policy = make_policy(configure.options, report)
    except VladError as error:
        _send(link, protocol.StartFailed(at_most(MAX_REASON_BYTES, str(error))))
        return 1
    except Exception as error:
        logger.exception("the policy could not be built")
        _send(link, protocol.StartFailed(at_most(MAX_REASON_BYTES, f"{type(error).__name__}: {error}")))
        return 1
    _send(link, policy.start_report())
    _send(link, protocol.Ready(dict(policy.metadata), list(policy.batch_sizes), policy.overlaps))
    send = functools.partial(_send, link)
    vitals = Vitals(policy.device_memory, send)

    # What prepares the next requests must not keep the thread waiting that has the device's results.
    sys.setswitchinterval(GIL_SWITCH_S)
    answer(policy, slots, _Inbox(link), send, between=vitals.tell_if_due)
    return 0


def _send(link: socket.socket, message: protocol.Message) -> None:
    link.sendall(protocol.pack_message(message))


def _receive(link: socket.socket) -> protocol.Message | None:
    packet = link.recv(protocol.MAX_PACKET_BYTES)
    return protocol.unpack_message(packet) if packet else None


class _Inbox:
    """See `answering.Inbox`."""

    def __init__(self, link: socket.socket) -> None:
        self._link = link
        self._watched, self._anything = select.epoll(), select.poll()
        self._watched.register(link, select.EPOLLIN)
        self._anything.register(link, select.POLLIN)

    def receive(self) -> protocol.Message | None:
        return _receive(self._link)

    def has_message(self) -> bool:
        return bool(self._anything.poll(0))

    def watch(self) -> None:
        self._watched.poll()

    def wake_watcher(self, is_on: bool) -> None:
        # This holds for a thread that is in `watch` already.
        self._watched.modify(self._link, select.EPOLLIN if is_on else 0)


def _exit_with_server(socket_fd: int) -> None:
    """End the process the moment the server is gone, even inside a long build or inference."""
    poll = select.poll()
    poll.register(socket_fd, 0)
    poll.poll()
    os._exit(0)


def _unified_policy(options: Mapping[str, Any], report: ReportProgress) -> Policy:
    report("importing the engines", 0.0)
    from vlad_engines.unified_policy import UnifiedPolicy

    policy_options = dict(options)
    allow_low_fidelity = policy_options.pop("allow_low_fidelity", False)
    times = StartTimes()
    policy = UnifiedPolicy(**policy_options, progress=report)
    times.end("load")
    policy.warm_up(report)
    times.end("warm_up")
    policy.verify_fidelity(allow_low_fidelity=allow_low_fidelity, progress=report)
    times.end("fidelity")
    return _ServedPolicy(policy, times.phase_s)


class _ServedPolicy:
    """A `UnifiedPolicy`, told in its own words what the reserved keys of an observation ask for."""

    def __init__(self, policy: Any, phase_s: Mapping[str, float]) -> None:
        self._policy = policy
        self._phase_s = phase_s

    @property
    def metadata(self) -> Mapping[str, Any]:
        metadata: Mapping[str, Any] = self._policy.metadata
        return metadata

    @property
    def batch_sizes(self) -> Sequence[int]:
        sizes: Sequence[int] = self._policy.batch_sizes
        return sizes

    @property
    def overlaps(self) -> bool:
        """True for backends that compute one request beside the other."""
        return self._policy.overlap is not None

    def start_report(self) -> protocol.StartReport:
        engines = {name: dataclasses.asdict(engine) for name, engine in self._policy.engine_files.items()}
        return protocol.StartReport(dict(self._phase_s), engines)

    def device_memory(self) -> protocol.DeviceMemory | None:
        memory: protocol.DeviceMemory | None = self._policy.device_memory()
        return memory

    def prepare(self, observation: Mapping[str, Any]) -> Any:
        robot_keys, noise, seed, continuation = _taken_apart(observation)
        return self._policy.prepare(robot_keys, noise=noise, seed=seed, chunk_continuation=continuation)

    def begin(self, prepared: Sequence[Any]) -> Begun:
        begun: Begun = self._policy.begin(prepared)
        return begun


def _taken_apart(observation: Mapping[str, Any]) -> tuple[dict[str, Any], Any, Any, ChunkContinuation | None]:
    """The robot's own keys, noise, seed and continuation of a request."""
    robot_keys = dict(observation)
    noise = robot_keys.pop("vlad/noise", None)
    seed = robot_keys.pop("vlad/seed", None)
    fields = robot_keys.pop(protocol.CONTINUATION_KEY, None)
    return robot_keys, noise, seed, None if fields is None else ChunkContinuation(**fields)


def main() -> None:
    """Entry point of the process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    sys.exit(serve(_unified_policy, sys.argv[1:]))


if __name__ == "__main__":
    main()
