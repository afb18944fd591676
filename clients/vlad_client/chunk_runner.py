"""A robot in real time: a thread that executes actions at the control rate, and others that bring them."""

from __future__ import annotations

import logging
import threading
import time
from types import TracebackType
from typing import Any, Callable

from vlad_client.control_timer import ControlTimer
from vlad_client.errors import PolicyConnectionError
from vlad_client.real_time_config import RealTimeConfig
from vlad_client.run_record import RunRecorder
from vlad_client.runner_core import RunnerCore, RunnerStatus
from vlad_client.streaming_client import StreamingClient

logger = logging.getLogger("vlad_client")

POLL_S = 0.2
STOP_TIMEOUT_S = 5.0


class ChunkRunner:
    """Executes the chunks of a streaming client, each control index exactly once.

        with StreamingClient(host, 8000) as client:
            with ChunkRunner(client, robot.observe, robot.apply, RealTimeConfig(control_hz=50)) as runner:
                runner.start_episode()
                runner.wait(30.0)

    `apply` runs in a thread of its own at the control rate; cameras, encoding and the network never hold
    it up. What happens when a chunk is late is up to `RealTimeConfig.late`. Lost connections and
    restarting servers are survived in the same way: the robot plays what it has, holds, and goes on.

    Args:
        client: used by this runner alone; it stays open.
        observe: returns an observation taken at the time of the call, in the keys of the environment.
        apply: executes one action, a float array of shape [action_width] that must not be written to; must
            return within the control period.
        recorder: keeps what was executed, for a plot.
    """

    def __init__(
        self,
        client: StreamingClient,
        observe: Callable[[], dict[str, Any]],
        apply: Callable[[Any], object],
        config: RealTimeConfig,
        *,
        recorder: RunRecorder | None = None,
    ) -> None:
        self._client = client
        self._observe = observe
        self._apply = apply
        self._core = RunnerCore(config, recorder)
        self._lock = threading.Lock()  # guards _core and _failure
        self._acting = threading.RLock()  # held from taking an action until it has been applied
        self._running = threading.Event()
        self._due = threading.Event()
        self._over = threading.Event()
        self._stopping = threading.Event()
        self._failure: BaseException | None = None
        self._failure_told = False
        self._threads = [
            threading.Thread(target=self._guarded, args=(work,), name=f"chunk-runner-{name}", daemon=True)
            for name, work in (
                ("control", self._control),
                ("request", self._request),
                ("receive", self._receive),
            )
        ]

    def start(self) -> None:
        """Start the threads; nothing is executed before `start_episode`."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End the episode and the threads. Returns once `apply` will not be called again.

        A callback that never returns is left behind after 5 s, with a line in the log.
        """
        self._stopping.set()
        self._running.set()
        self._due.set()
        end = time.monotonic() + STOP_TIMEOUT_S
        for thread in self._threads:
            if thread is threading.current_thread() or thread.ident is None:
                continue
            thread.join(max(0.0, end - time.monotonic()))
            if thread.is_alive():
                logger.warning("%s is still busy; it is left behind", thread.name)
        with self._lock:
            self._core.schedule.end_episode()
        self._over.set()

    def start_episode(self) -> None:
        """Forget the previous episode and execute the chunks for what `observe` sees from now on.

        Raises:
            Whatever ended an earlier episode before its time.
        """
        self.check()
        with self._acting, self._lock:
            self._core.schedule.start_episode(time.monotonic())
            self._over.clear()
        self._due.set()
        self._running.set()

    def end_episode(self) -> None:
        """Stop executing. Once it returns, `apply` is not called before the next episode.

        Raises:
            Whatever ended the episode before its time.
        """
        with self._acting, self._lock:
            self._running.clear()
            self._core.schedule.end_episode()
            self._over.set()
        self.check()

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait until the episode is over, from another thread or by a failure; False if time is up first.

        Raises:
            Whatever `observe` or `apply` raised; PolicyServerError if the server finds the observations
            invalid; PolicyConnectionError or PolicyTimeoutError if the client gives the server up.
        """
        over = self._over.wait(timeout_s)
        self.check()
        return over

    def check(self) -> None:
        """Raise what went wrong, as `wait` does; returns at once if all is well."""
        with self._lock:
            failure = self._failure
            self._failure_told = failure is not None
        if failure is not None:
            raise failure

    def status(self) -> RunnerStatus:
        """How the run is going."""
        with self._lock:
            return self._core.status()

    def __enter__(self) -> ChunkRunner:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if exc_type is None and not self._failure_told:
            self.check()

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._lock:
                if self._failure is None and not self._stopping.is_set():
                    self._failure = error
                self._core.schedule.end_episode()
                self._running.clear()
                self._over.set()

    def _control(self) -> None:
        while self._running.wait() and not self._stopping.is_set():
            timer = ControlTimer(time.monotonic())
            while self._running.is_set() and not self._stopping.wait(timer.wait_s(time.monotonic())):
                self._control_step(timer)

    def _control_step(self, timer: ControlTimer) -> None:
        with self._acting:
            with self._lock:
                now = time.monotonic()
                step = self._core.step(now)
                timer.advance(now, self._core.schedule.period_s(now))
                due = self._core.schedule.request_due(now)
            if due:
                self._due.set()
            if step.action is not None:
                self._apply(step.action)

    def _request(self) -> None:
        while self._due.wait() and not self._stopping.is_set():
            self._due.clear()
            number = self._client.new_observation_id()
            with self._lock:
                now = time.monotonic()
                if not self._core.schedule.request_due(now):
                    continue
                extras = self._core.begin_request(now, number, self._client.capabilities)
            observation = self._observe()
            try:
                self._client.send(observation, extras, observation_id=number)
            except PolicyConnectionError as error:
                with self._lock:
                    self._core.send_failed(number, error, time.monotonic())

    def _receive(self) -> None:
        while not self._stopping.is_set():
            event = self._client.receive(POLL_S)
            if event is not None:
                with self._lock:
                    self._core.handle(event, time.monotonic())
