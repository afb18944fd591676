"""The daemon from start to stop: bind, start the engine worker, serve, drain."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import pathlib
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any

from prometheus_client import CollectorRegistry

from vlad_configs.access import is_loopback
from vlad_configs.errors import ConfigError
from vlad_configs.serving import ServeConfig
from vlad_server import allocator, capabilities
from vlad_server.dispatcher import Dispatcher
from vlad_server.gateway import Gateway
from vlad_server.health import Pulse
from vlad_server.loop_watchdog import LoopWatchdog
from vlad_server.metrics import ServerMetrics
from vlad_server.monitoring import MonitoringServer
from vlad_server.readiness import Readiness
from vlad_server.recordings.recorder import Recorder
from vlad_server.version import daemon_version
from vlad_server.worker_process import WORKER_COMMAND

logger = logging.getLogger("vlad.server")

PULSE_S = 0.05
GIL_SWITCH_S = 0.0005
"""A metrics scrape holds the GIL; short turns keep it from delaying the event loop."""


async def serve_policy(config: ServeConfig, worker_command: Sequence[str] = WORKER_COMMAND) -> int:
    """Serve until SIGTERM or SIGINT.

    Args:
        worker_command: how to start an engine worker.

    Returns:
        0 after a complete drain, 1 where connections had to be cut.

    Raises:
        ConfigError: where a port is taken or the policy cannot be loaded.
    """
    sys.setswitchinterval(GIL_SWITCH_S)
    allocator.keep_freed_memory()
    allocator.collect_seldom()
    started = time.monotonic()
    metrics = ServerMetrics(CollectorRegistry())
    readiness = Readiness(metrics)
    pulse = Pulse()
    signals: asyncio.Queue[signal.Signals] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, signals.put_nowait, number)

    async with contextlib.AsyncExitStack() as stack:
        monitoring = _bind_monitoring(config, metrics, readiness, pulse)
        stack.callback(monitoring.close)
        recorder = None
        if config.record_dir is not None:
            recorder = Recorder(
                pathlib.Path(config.record_dir), config.environment, config.record_file_bytes, metrics
            )
            stack.callback(recorder.close)
        dispatcher = Dispatcher(
            worker_command,
            [config.policy_options(device) for device in config.worker_devices],
            request_bytes=config.max_message_bytes,
            max_waiting=config.max_waiting,
            describe=functools.partial(capabilities.describe, config=config),
            hang_s=config.hang_s,
            readiness=readiness,
            metrics=metrics,
        )
        stack.callback(dispatcher.close)
        gateway = Gateway(
            dispatcher, config=config, readiness=readiness, metrics=metrics, pulse=pulse, recorder=recorder
        )
        try:
            port = await gateway.open()
        except OSError as error:
            # asyncio wraps the system's words into more of them; those of the system say it all.
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise ConfigError(f"cannot listen on {config.host}:{config.port}: {reason}") from error
        stack.push_async_callback(gateway.close)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, gateway.reload)
        _log_addresses(config, port, monitoring.port)

        tasks = [
            asyncio.create_task(dispatcher.supervise()),
            asyncio.create_task(_beat(pulse, metrics)),
            asyncio.create_task(_announce(config, readiness, metrics, started)),
        ]
        stack.push_async_callback(_cancel, tasks)
        stack.callback(LoopWatchdog(pulse).close)
        supervising = tasks[0]
        stopping = asyncio.create_task(signals.get())
        await asyncio.wait({supervising, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if supervising.done():
            stopping.cancel()
            readiness.change("failed", str(supervising.exception()))
            supervising.result()

        logger.info("%s: draining, at most %.0f s", stopping.result().name, config.drain_s)
        readiness.change("draining", "the daemon is going away")
        draining = asyncio.create_task(gateway.drain(config.drain_s))
        hurried = asyncio.create_task(signals.get())
        await asyncio.wait({draining, hurried}, return_when=asyncio.FIRST_COMPLETED)
        complete = draining.done() and draining.result()
        await _cancel([draining, hurried])
        logger.info("stopped" if complete else "stopped; connections that were left are cut")
        return 0 if complete else 1


def _bind_monitoring(
    config: ServeConfig, metrics: ServerMetrics, readiness: Readiness, pulse: Pulse
) -> MonitoringServer:
    try:
        return MonitoringServer(
            config.host, config.metrics_port, registry=metrics.registry, readiness=readiness, pulse=pulse
        )
    except OSError as error:
        raise ConfigError(
            f"cannot serve metrics on {config.host}:{config.metrics_port}: {error.strerror}; "
            "choose another --metrics-port"
        ) from error


def _log_addresses(config: ServeConfig, port: int, metrics_port: int) -> None:
    logger.info(
        "listening on %s://%s:%d (policy) and http://%s:%d/metrics",
        "wss" if config.access.uses_tls else "ws",
        config.host,
        port,
        config.host,
        metrics_port,
    )
    if config.status_page:
        scheme = "https" if config.access.uses_tls else "http"
        logger.info("status page: %s://%s:%d/", scheme, config.host, port)
    if is_loopback(config.host):
        logger.info("only this machine can connect; for robots on other machines add --host 0.0.0.0")
    elif not config.access.needs_key:
        logger.warning(
            "anyone who reaches %s can command this policy and see its cameras; consider --api-key-file",
            config.host,
        )
    elif not config.access.uses_tls:
        logger.warning("keys and images travel in the clear on %s; consider --tls-cert", config.host)


async def _beat(pulse: Pulse, metrics: ServerMetrics) -> None:
    while True:
        due = time.monotonic() + PULSE_S
        await asyncio.sleep(PULSE_S)
        pulse.beat()
        metrics.event_loop_lag.observe(max(0.0, time.monotonic() - due))


async def _announce(
    config: ServeConfig, readiness: Readiness, metrics: ServerMetrics, started: float
) -> None:
    await readiness.wait_ready()
    metadata = readiness.metadata
    metrics.set_build_info(
        version=daemon_version(),
        backend=config.backend,
        precision=str(metadata.get("precision", "")),
        model=str(metadata.get("family", "")),
        env=config.environment,
    )
    metrics.set_components(metadata.get("components", {}))
    metrics.set_fidelity(metadata.get("fidelity", {}))
    logger.info("ready after %.1f s: %s", time.monotonic() - started, dict(metadata))


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
