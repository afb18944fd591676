"""All episodes of an evaluation, in parallel against one server."""

from __future__ import annotations

import atexit
import dataclasses
import functools
import pathlib
from typing import TYPE_CHECKING, Callable, Sequence

from vlad_libero.errors import LiberoError
from vlad_libero.evaluation.episode import EpisodeOptions, run_episode
from vlad_libero.evaluation.playing import Playing
from vlad_libero.evaluation.protocol import Protocol
from vlad_libero.evaluation.results import EpisodeLog, EpisodeResult
from vlad_libero.evaluation.video import write_film
from vlad_libero.processes import in_processes
from vlad_libero.simulator.cameras import RENDERINGS, Image
from vlad_libero.simulator.package import AssetTree
from vlad_libero.simulator.simulator import Simulator
from vlad_libero.simulator.suites import suite_tasks

if TYPE_CHECKING:
    from vlad_client import WebsocketClientPolicy


@dataclasses.dataclass(frozen=True)
class Server:
    """Where the policy is.

    Attributes:
        host: name, address, or a whole `ws://` address.
        port: None for the port of the address.
        api_key: None for none.
        image_encoding: `jpeg`, `png` or None for plain arrays.
        quality: of JPEG.
    """

    host: str
    port: int | None
    api_key: str | None = None
    image_encoding: str | None = None
    quality: int | None = None

    def connect(self) -> WebsocketClientPolicy:
        """A client that sends an observation again where the connection breaks: a simulator waits."""
        from vlad_client import WebsocketClientPolicy

        return WebsocketClientPolicy(
            self.host,
            self.port,
            self.api_key,
            resend_observation=True,
            image_encoding=self.image_encoding,
            quality=self.quality,
        )


@dataclasses.dataclass(frozen=True)
class EpisodeJob:
    """An episode to run, in any process.

    Attributes:
        protocol, playing, server, assets: as in the whole run.
        task: index in the suite.
        trial: index of the initial state.
        film: file for its film; None for none.
        record: file for its frames; None for none.
    """

    protocol: Protocol
    playing: Playing
    server: Server
    assets: AssetTree
    task: int
    trial: int
    film: pathlib.Path | None = None
    record: pathlib.Path | None = None


def run_jobs(
    jobs: Sequence[EpisodeJob], log: EpisodeLog, workers: int, on_result: Callable[[EpisodeResult], None]
) -> None:
    """Run what the log lacks, and keep each result at once.

    Raises:
        LiberoError: where a simulator process died, or the server refuses or is lost for good.
    """
    missing = [job for job in jobs if (job.task, job.trial) not in log.results]
    if not missing:
        return
    for result in in_processes(_run_job, missing, workers):
        log.add(result)
        on_result(result)


def _run_job(job: EpisodeJob) -> EpisodeResult:
    frames: list[Image] = []
    options = EpisodeOptions(job.record, frames.append if job.film is not None else None)
    from vlad_client.errors import PolicyClientError

    simulator = _simulator(job.protocol, job.assets, job.task)
    try:
        client = _client(job.server)
        result = run_episode(simulator, client, job.protocol, job.playing, job.trial, options)
    except PolicyClientError as error:
        # The client's errors do not survive the way between processes; their text does.
        raise LiberoError(f"task {job.task}, trial {job.trial}: {error}") from error
    if job.film is not None:
        outcome = "success" if result.success else "failure"
        write_film(job.film.with_stem(f"{job.film.stem}-{outcome}"), frames)
    return result


@functools.lru_cache(maxsize=1)
def _simulator(protocol: Protocol, assets: AssetTree, task: int) -> Simulator:
    return Simulator(suite_tasks(protocol.suite)[task], assets, RENDERINGS[protocol.rendering])


@functools.lru_cache(maxsize=1)
def _client(server: Server) -> WebsocketClientPolicy:
    client = server.connect()
    atexit.register(client.close)
    return client
