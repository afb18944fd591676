"""The recorder's process: exchanges come through a pipe, MCAP files go to the disk.

Started by `Recorder` as `python -m vlad_server.recordings.process DIRECTORY ENVIRONMENT FILE_BYTES`. It is
a process of its own so that compressing pictures never takes the interpreter from the event loop, and so
that files are completed even where the server is killed: the end of the pipe is the end of the recording.
"""

from __future__ import annotations

import os
import pathlib
import signal
import sys

from vlad_server.recordings.exchange import read_pipe
from vlad_server.recordings.writer import RecordingWriter

NICENESS = 10
"""Robots come first: where the machine is short of processors, exchanges are dropped, not delayed."""


def main(arguments: list[str]) -> int:
    """Record until the pipe ends; the last line on stdout says why where that is not the end.

    Returns:
        0, or 1 where the disk takes no more.
    """
    directory, environment, file_bytes = arguments
    # The server decides when recording ends; a terminal or service manager signals both processes.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    writer = RecordingWriter(pathlib.Path(directory), environment, int(file_bytes))
    try:
        while (frame := read_pipe(sys.stdin.buffer)) is not None:
            if isinstance(frame, dict):
                writer.set_policy(frame)
            else:
                writer.write(frame)
        writer.close()
    except OSError as error:
        print(f"{error.strerror or error}", flush=True)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
