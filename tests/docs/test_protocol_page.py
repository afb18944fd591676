"""docs/protocol.md tells the truth: its client runs, its bytes, keys, codes and limits are the daemon's."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest

from tests.support.daemon import ROOT, Daemon, start_daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from vlad_configs import environments
from vlad_configs.environments import ENVIRONMENTS
from vlad_configs.serving import ServeConfig
from vlad_server import gateway, metrics, outcomes, request_options, robot_connection, sessions, wire

PAGE = (ROOT / "docs" / "protocol.md").read_text()


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_scripted_daemon() as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.fixture(scope="module")
def demo_daemon() -> Iterator[Daemon]:
    """The real policy, where the script would hide what the worker adds."""
    with start_daemon("--checkpoint", "demo") as daemon:
        daemon.wait_ready(120)
        yield daemon


def _section(title: str) -> str:
    match = re.search(rf"^(#+) {re.escape(title)}$(.*?)(?=^#{{1,3}} |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[2]


def _rows(section: str) -> list[list[str]]:
    """Cells of the table rows of a section, without headings."""
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row] for row in rows]
    rules = [number for number, row in enumerate(cells) if set("".join(row)) <= set("-")]
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def _keys(section: str) -> set[str]:
    return {key for row in _rows(section) for key in re.findall(r"`([^`]+)`", row[0])}


def test_the_client_on_the_page_gets_a_chunk(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert "127.0.0.1:8000" in code
    assert len([line for line in code.splitlines() if line.strip()]) <= 25
    (tmp_path / "client.py").write_text(code.replace("127.0.0.1:8000", f"127.0.0.1:{daemon.port}"))
    without_proxy = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    result = subprocess.run(
        [sys.executable, "client.py"],
        cwd=tmp_path,
        env=without_proxy,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout == "(10, 7)\n"


def test_hex_samples_are_what_the_daemon_encodes() -> None:
    samples = {row[0].strip("`"): row[1].strip("`") for row in _rows(_section("Messages")) if len(row[1]) > 1}
    values = {
        "np.array([1, 2], np.float32)": np.array([1, 2], np.float32),
        "np.array(1.0)": np.array(1.0),
        "np.float32(1.5)": np.float32(1.5),
        "np.int64(3)": np.int64(3),
    }
    for name, value in values.items():
        assert wire.encode({"x": value})[len(b"\x81\xa1x") :].hex() == samples[name]
    assert wire.encode({}).hex() == samples["{}"]


@pytest.mark.parametrize(
    ("title", "names"),
    [("LIBERO", ["LIBERO"]), ("DROID", ["DROID"]), ("ALOHA and ALOHA_SIM", ["ALOHA", "ALOHA_SIM"])],
)
def test_request_keys_are_those_of_the_environments(title: str, names: list[str]) -> None:
    for name in names:
        environment = ENVIRONMENTS[name]
        cameras = {camera.key for camera in environment.cameras}
        groups = {camera.path[0] for camera in environment.cameras if len(camera.path) > 1}
        vectors = {vector.key for vector in environment.state}
        assert _keys(_section(title)) == {"prompt"} | cameras | groups | vectors
        optional = {row[0].strip("`") for row in _rows(_section(title)) if "may be left out" in row[1]}
        assert optional == {
            camera.key for camera in environment.cameras if not camera.required and camera.slot is not None
        }


def test_every_environment_has_its_section_and_action_width() -> None:
    for environment in ENVIRONMENTS.values():
        rows = [row for row in _rows(_section("Reply")) if environment.name in row[0].split(", ")]
        assert len(rows) == 1
        assert rows[0][1].startswith(f"{environment.action_width}:")


def test_optional_keys_are_those_that_the_daemon_reserves() -> None:
    reserved = request_options.POLICY_KEYS | request_options.OPTION_KEYS
    assert _keys(_section("Optional keys (**vlad**)")) == reserved


def test_timing_keys_are_those_of_a_reply(demo_daemon: Daemon) -> None:
    documented = {key for key in _keys(_section("Reply")) if "/" in key}
    with connect_robot(demo_daemon.port) as robot:
        robot.infer(libero_observation())
        reply = robot.infer(libero_observation())
    assert set(reply) == {"actions", "policy_timing", "server_timing"}
    timings = {f"{part}/{key}" for part in ("policy_timing", "server_timing") for key in reply[part]}
    assert timings == documented


def test_additional_keys_are_those_of_a_reply(demo_daemon: Daemon) -> None:
    with connect_robot(demo_daemon.port) as robot:
        plain = robot.infer(libero_observation())
        reply = robot.infer({**libero_observation(), "vlad/observation_id": 1})
    assert set(reply) - set(plain) == _keys(_section("Additional keys (**vlad**)"))


def test_continuations_work_as_described_with_the_real_policy(demo_daemon: Daemon) -> None:
    documented = _keys(_section("Continuing a chunk"))
    assert documented == request_options.RTC_KEYS
    with connect_robot(demo_daemon.port) as robot:
        assert robot.metadata["vlad"]["rtc"] is not None
        first = robot.infer({**libero_observation(), "vlad/seed": 1, "vlad/reset": True})
        rtc = {"prev_chunk_id": first["chunk_id"], "executed": 2, "delay": 3}
        free, drawn = (
            robot.infer({**libero_observation(1), "vlad/seed": 2, **extra})
            for extra in ({"vlad/observation_id": 0}, {"vlad/rtc": rtc})
        )
    assert set(drawn["rtc"]) == {*rtc, "mode", "prefix_end", "beta", "schedule", "valid_from", "note"} - {
        *("prev_chunk_id", "executed")
    }
    assert drawn["rtc"]["mode"] == "guided_identity"
    left = first["actions"][2:5]
    assert np.abs(drawn["actions"][:3] - left).max() < np.abs(free["actions"][:3] - left).max() / 2


def test_the_page_knows_how_much_is_remembered() -> None:
    assert f"at most the latest {sessions.MAX_SUPERSEDED_IDS}" in _section("Additional keys (**vlad**)")
    assert f"session's latest {sessions.LATENCY_WINDOW} latencies" in _section("Continuing a chunk")


def test_error_codes_are_those_of_the_code() -> None:
    codes = _keys(_section("Errors of requests with an id"))
    unserved = {error.code for error in outcomes.UnservedError.__subclasses__()}
    assert codes == {"invalid", "engine", "worker_lost"} | unserved


def test_metadata_keys_are_those_of_a_policy(demo_daemon: Daemon) -> None:
    with connect_robot(demo_daemon.port) as robot:
        metadata = robot.metadata
        reply = robot.infer(libero_observation())
    assert set(metadata) == _keys(_section("Metadata frame"))
    assert reply["actions"].shape == (metadata["action_horizon"], metadata["action_dim"])
    assert metadata["weights"] in ("random", "checkpoint")


def test_seed_and_noise_make_chunks_reproducible(demo_daemon: Daemon) -> None:
    observation = libero_observation()
    with connect_robot(demo_daemon.port) as robot:
        noise = np.random.default_rng(0).standard_normal(robot.metadata["noise_shape"], dtype=np.float32)
        for extra in ({"vlad/seed": 7}, {"vlad/noise": noise}):
            first, second = (robot.infer({**observation, **extra})["actions"] for _ in range(2))
            assert first.tobytes() == second.tobytes()
        free = [robot.infer(observation)["actions"] for _ in range(2)]
        assert not np.array_equal(*free)
        robot.send({**observation, "vlad/seed": 7, "vlad/noise": noise})
        assert "vlad/seed" in robot.receive_error()


def test_the_error_on_the_page_is_the_daemons_own(daemon: Daemon) -> None:
    (example,) = re.findall(r"```\n(invalid observation: .*)\n```", PAGE)
    with connect_robot(daemon.port) as robot:
        robot.send({**libero_observation(), "observation/state": np.zeros(9)})
        assert robot.receive_error() == example


def test_close_codes_are_counted_under_their_own_name() -> None:
    codes = {row[0] for row in _rows(_section("Close codes"))}
    assert codes == {"1000", "1001", "1006", "1007", "1008", "1009", "1011"}
    assert codes <= set(metrics.CLOSE_CODES)


def test_a_text_frame_that_is_not_utf8_closes_with_1007(daemon: Daemon) -> None:
    from websockets.exceptions import ConnectionClosedError
    from websockets.frames import Frame, Opcode

    with connect_robot(daemon.port) as robot:
        frame = Frame(Opcode.TEXT, b"\xff\xfe").serialize(mask=True)
        robot.connection.socket.sendall(frame)
        with pytest.raises(ConnectionClosedError) as caught:
            robot.receive()
        assert caught.value.rcvd is not None
        assert caught.value.rcvd.code == 1007


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/livez", "/", "/anything"])
def test_http_paths_answer_as_described(daemon: Daemon, path: str) -> None:
    (row,) = [row for row in _rows(_section("HTTP on the same port")) if f"`{path}`" in row[0]] or [
        row for row in _rows(_section("HTTP on the same port")) if "anything else" in row[0]
    ]
    assert daemon.http(path)[0] == int(row[1][:3])


def test_limits_are_those_of_the_code() -> None:
    config = ServeConfig(environment="LIBERO", checkpoint="demo")
    limits = {
        "message": f"{config.max_message_bytes >> 20} MiB",
        "image side": f"{environments.MAX_IMAGE_SIDE} pixels",
        "an id, of a session or an observation": f"{request_options.MAX_ID_CHARACTERS} characters",
        "sessions of a connection": str(robot_connection.MAX_SESSIONS),
        "a deadline": f"{request_options.MAX_DEADLINE_MS:.0f} ms",
        "prompt": f"{environments.MAX_PROMPT_CHARACTERS} characters",
        "array dimensions": str(wire.MAX_DIMENSIONS),
        "elements of a list": str(wire.MAX_ARRAY_ELEMENTS),
        "entries of a map": str(wire.MAX_MAP_ELEMENTS),
        "a text": f"{wire.MAX_TEXT_BYTES} bytes",
        "lists and maps in a message": str(wire.MAX_CONTAINERS),
        "time for the handshake": f"{gateway.OPEN_TIMEOUT_S:.0f} s",
        "connections": str(config.access.max_connections),
        "time that a reply may stay unread": f"{config.send_timeout_s:.0f} s",
    }
    rows = {row[0]: row[1] for row in _rows(_section("Limits"))}
    assert set(rows) == set(limits)
    for name, value in limits.items():
        assert rows[name].split(",")[0] == value
    prose = _section("Order, queueing, keepalive")
    assert f"pings every {gateway.PING_INTERVAL_S:.0f} s" in prose
    assert f"after {gateway.PING_TIMEOUT_S:.0f} s" in prose
    assert f"at most {config.drain_s:.0f} s" in _section("Close codes")
