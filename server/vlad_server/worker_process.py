"""One life of an engine worker: the process, its socket, its messages. Never restarts anything."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

from vlad_engines import worker_protocol as protocol

WORKER_COMMAND = (sys.executable, "-m", "vlad_engines.worker")

_ENVIRONMENT = {
    # On a CPU, torch's threads spin between parallel regions by default. Where anything else wants a core,
    # the server included, that makes a chunk several times slower.
    "OMP_WAIT_POLICY": "passive",
    # Merging weights leaves holes between them; on an H200 this gives 1.0 of 9.8 GiB back.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
}
"""What a worker's environment holds unless the daemon's own says otherwise."""

ABORT_S = 2.0
"""What a worker gets to write its stacks before it is killed."""

_RECEIVE_BUFFER = protocol.MAX_PACKET_BYTES


class WorkerProcess:
    """A running engine worker.

    Args:
        command: what to run; socket fd, memory fd and slot geometry are appended.
        slots: shared memory that the worker maps.
        request_bytes: the size with which `slots` was created.
        on_message: called on the event loop for each message of the worker.
    """

    def __init__(
        self,
        command: Sequence[str],
        slots: protocol.SharedSlots,
        request_bytes: int,
        on_message: Callable[[protocol.Message], None],
    ) -> None:
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._closed = self._loop.create_future()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = [theirs.fileno(), slots.fd, slots.count, request_bytes]
            # subprocess, not asyncio's: nothing is awaited here, and exec happens in C.
            self._process = subprocess.Popen(
                [*command, *map(str, arguments)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), slots.fd),
                env={**_ENVIRONMENT, **os.environ},
            )
        self._socket.setblocking(False)
        self._loop.add_reader(self._socket, self._on_readable)

    @property
    def pid(self) -> int:
        """Process id of the worker."""
        return self._process.pid

    def send(self, message: protocol.Message) -> None:
        """Hand a message over; a worker that is gone is noticed by `wait_closed`, not here.

        Raises:
            ValueError: for a message that does not fit into a packet.
        """
        packet = protocol.pack_message(message)
        # The buffer holds far more packets than there are slots, so it is full only for a dead worker.
        with contextlib.suppress(OSError):
            self._socket.send(packet)

    async def wait_closed(self) -> int:
        """Wait until the worker is gone and return its exit code (negative: a signal)."""
        await asyncio.shield(self._closed)
        # Polled, because a thread in wait() would outlive the daemon where the driver holds the process.
        while (code := self._process.poll()) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        return code

    async def abort(self) -> None:
        """Have the worker write the stacks of its threads to stderr and die; kill it where it cannot."""
        self._process.send_signal(signal.SIGABRT)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._closed), ABORT_S)
        self._process.kill()

    def close(self) -> None:
        """Cut the worker off; it ends by itself at once, and is killed should it not."""
        if self._closed.done():
            return
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._process.kill()
        self._closed.set_result(None)

    def _on_readable(self) -> None:
        try:
            packet = self._socket.recv(_RECEIVE_BUFFER)
        except BlockingIOError:
            return
        except OSError:
            packet = b""
        if packet:
            self._on_message(protocol.unpack_message(packet))
        else:
            self.close()
