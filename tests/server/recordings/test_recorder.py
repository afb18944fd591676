"""The recorder beside the event loop: it never waits, drops what is too much, and says when it ends."""

from __future__ import annotations

import pathlib
import sys
import time

import pytest
from prometheus_client import CollectorRegistry

from vlad_configs.errors import ConfigError
from vlad_server.metrics import ServerMetrics
from vlad_server.recordings import recorder as module
from vlad_server.recordings.recorder import QUEUED_BYTES, QUEUED_EXCHANGES, Recorder

REQUEST = bytes(300_000)


def _value(metrics: ServerMetrics, name: str) -> float:
    value = metrics.registry.get_sample_value(name)
    assert value is not None
    return value


def test_a_disk_that_does_not_keep_up_costs_exchanges_and_no_time(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_S", 0.2)
    metrics = ServerMetrics(CollectorRegistry())
    never_reads = (sys.executable, "-c", "import time; time.sleep(60)")
    recorder = Recorder(tmp_path, "LIBERO", 1 << 30, metrics, command=never_reads)
    policy: dict[str, object] = {}
    slowest = 0.0
    for _ in range(1000):
        started = time.perf_counter()
        recorder.record({}, REQUEST, b"reply", policy)
        slowest = max(slowest, time.perf_counter() - started)
    kept = 1000 - _value(metrics, "vlad_recorder_dropped_total")
    assert kept <= QUEUED_EXCHANGES + 4
    assert kept * len(REQUEST) < QUEUED_BYTES + (4 << 20)
    assert slowest < 0.5
    recorder.close()
    assert _value(metrics, "vlad_recorder_active") == 0


def test_a_recorder_that_dies_is_missed_and_counted(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    metrics = ServerMetrics(CollectorRegistry())
    says_why = (sys.executable, "-c", "print('No space left on device'); raise SystemExit(1)")
    recorder = Recorder(tmp_path, "LIBERO", 1 << 30, metrics, command=says_why)
    recorder._process.wait()
    recorder.record({}, REQUEST, b"reply", {})
    recorder.close()
    recorder.record({}, REQUEST, b"reply", {})
    assert _value(metrics, "vlad_recorder_stops_total") == 1
    assert _value(metrics, "vlad_recorder_dropped_total") >= 1
    assert "has stopped: No space left on device; requests are served on" in caplog.text


def test_a_place_that_cannot_be_written_is_refused_at_the_start(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot record to .*file/below"):
        Recorder(tmp_path / "file" / "below", "LIBERO", 1 << 30, ServerMetrics(CollectorRegistry()))


def test_the_missing_package_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mcap", None)
    with pytest.raises(ConfigError, match=r"pip install 'vlad\[record\]'"):
        Recorder(tmp_path, "LIBERO", 1 << 30, ServerMetrics(CollectorRegistry()))
