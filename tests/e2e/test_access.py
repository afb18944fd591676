"""Who may connect: keys from a file, web pages, numbers and rates, TLS, and what SIGHUP changes."""

from __future__ import annotations

import concurrent.futures
import pathlib
import shutil
import signal
import socket
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection

from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import Robot, connect_robot, open_connection, pack
from vlad_server import gateway

KITCHEN, HALL, NEW = "0123456789abcdef-kitchen", "0123456789abcdef-hall", "0123456789abcdef-new"
MAX_CONNECTIONS = 3
RATE = 4.0
ORIGIN = "https://lab.example"


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    file = tmp_path_factory.mktemp("keys") / "keys"
    file.write_text(f"kitchen {KITCHEN}\nhall {HALL}\n")
    return file


@pytest.fixture(scope="module")
def daemon(key_file: pathlib.Path) -> Iterator[Daemon]:
    options = ["--api-key-file", str(key_file), "--require-key", "--max-connections", str(MAX_CONNECTIONS)]
    rates = ["--max-requests-per-second", str(RATE), "--allow-origin", f"{ORIGIN}, https://other.example"]
    with start_scripted_daemon(*options, *rates) as daemon:
        daemon.wait_ready()
        yield daemon


@pytest.fixture(scope="module")
def slow_handshake(daemon: Daemon) -> Iterator[socket.socket]:
    """Begun before the other tests, looked at after them."""
    with socket.create_connection(("127.0.0.1", daemon.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        yield raw


def _key(key: str) -> dict[str, Any]:
    return {"additional_headers": {"Authorization": f"Api-Key {key}"}}


def _status(port: int, **options: Any) -> int:
    with pytest.raises(InvalidStatus) as caught:
        open_connection(port, **options)
    status: int = caught.value.response.status_code
    return status


def test_each_key_of_the_file_admits_and_no_other_does(daemon: Daemon, slow_handshake: socket.socket) -> None:
    for key in (KITCHEN, HALL):
        with connect_robot(daemon.port, **_key(key)) as robot:
            assert robot.infer(libero_observation())["actions"].shape == (10, 7)
    for options in ({}, _key("wrong"), _key(""), _key(KITCHEN[:-1]), _key("kitchen")):
        assert _status(daemon.port, **options) == 401
    assert KITCHEN not in daemon.log()


def test_web_pages_may_not_connect_unless_they_are_listed(daemon: Daemon) -> None:
    assert _status(daemon.port, origin="https://evil.example", **_key(HALL)) == 403
    assert _status(daemon.port, origin="null", **_key(HALL)) == 403
    with connect_robot(daemon.port, origin=ORIGIN, **_key(HALL)) as robot:
        assert robot.metadata["family"] == "scripted"
    assert daemon.metric("vlad_connection_attempts_total", outcome="forbidden_origin") == 2


def test_no_more_may_be_open_than_allowed_and_a_place_becomes_free(daemon: Daemon) -> None:
    _wait_for_connections(daemon, 0)
    opened = [open_connection(daemon.port, **_key(KITCHEN)) for _ in range(MAX_CONNECTIONS)]
    assert _status(daemon.port, **_key(KITCHEN)) == 503
    assert daemon.http("/healthz")[0] == 200
    assert daemon.http("/")[0] == 200
    opened.pop().close()
    _wait_for_connections(daemon, MAX_CONNECTIONS - 1)
    opened.append(open_connection(daemon.port, **_key(KITCHEN)))
    for connection in opened:
        connection.close()
    assert daemon.metric("vlad_connection_attempts_total", outcome="at_capacity") == 1


def test_a_burst_gets_as_many_places_as_there_are(daemon: Daemon) -> None:
    def attempt(_: int) -> ClientConnection | int:
        try:
            return open_connection(daemon.port, **_key(KITCHEN))
        except InvalidStatus as error:
            return error.response.status_code

    _wait_for_connections(daemon, 0)
    before = daemon.metric("vlad_connection_attempts_total", outcome="at_capacity")
    with concurrent.futures.ThreadPoolExecutor(3 * MAX_CONNECTIONS) as pool:
        results = list(pool.map(attempt, range(3 * MAX_CONNECTIONS)))
    opened = [result for result in results if isinstance(result, ClientConnection)]
    refused = [result for result in results if isinstance(result, int)]
    assert (len(opened), refused) == (MAX_CONNECTIONS, [503] * (2 * MAX_CONNECTIONS))
    for connection in opened:
        connection.close()
    after = daemon.metric("vlad_connection_attempts_total", outcome="at_capacity")
    assert after - before == 2 * MAX_CONNECTIONS


def _wait_for_connections(daemon: Daemon, count: int) -> None:
    end = time.monotonic() + 20
    while daemon.metric("vlad_connections") != count and time.monotonic() < end:
        time.sleep(0.01)
    assert daemon.metric("vlad_connections") == count


def test_who_asks_too_often_is_told_so_and_nobody_else_waits(daemon: Daemon) -> None:
    time.sleep(1.1)  # what was asked before is forgotten
    with (
        connect_robot(daemon.port, **_key(KITCHEN)) as robot,
        connect_robot(daemon.port, **_key(KITCHEN)) as same,
        connect_robot(daemon.port, **_key(HALL)) as other,
    ):
        answers = [_ask(one) for one in 5 * [robot, same]]
        assert answers[:4] == [None] * 4
        limited = [answer for answer in answers if answer is not None]
        assert len(limited) >= 2
        assert set(limited) == {"limited"}
        assert _ask(other) is None
        robot.send(libero_observation())  # a stock client is told in a text frame, and its connection lives
        message = robot.connection.recv(10)
        assert isinstance(message, bytes) or message.startswith("limited: more requests per second")
        time.sleep(1.0)
        assert _ask(robot) is None
    assert daemon.metric("vlad_requests_total", outcome="limited") >= 2


def _ask(robot: Robot) -> str | None:
    """The code of the error; None for a chunk."""
    code: str | None = robot.infer({**libero_observation(), "vlad/observation_id": 1}).get("code")
    return code


def test_sighup_reads_the_keys_again_and_a_broken_file_changes_nothing(
    daemon: Daemon, key_file: pathlib.Path
) -> None:
    with connect_robot(daemon.port, **_key(HALL)) as robot:
        key_file.write_text(f"kitchen {KITCHEN}\nnew {NEW}\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_log("reloaded 2 api keys")
        assert _status(daemon.port, **_key(HALL)) == 401
        open_connection(daemon.port, **_key(NEW)).close()
        assert _ask(robot) is None  # who is in stays in
        key_file.write_text("short\n")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_log("nothing is reloaded: api key file .* line 1")
        open_connection(daemon.port, **_key(NEW)).close()


def test_keys_are_asked_for_where_there_should_be_some() -> None:
    with start_scripted_daemon("--require-key", listening=False) as daemon:
        assert daemon.process.wait(60) == 2
        assert "--require-key is given but there is no key" in daemon.log()


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        ([], "anyone who reaches 0.0.0.0 can command this policy"),
        (["--api-key", KITCHEN], "travel in the clear"),
    ],
    ids=["without a key", "without tls"],
)
def test_an_open_door_is_warned_of(options: list[str], warning: str) -> None:
    with start_scripted_daemon("--host", "0.0.0.0", *options) as daemon:
        line = daemon.wait_for_log(f"WARNING .*{warning}")[0]
        assert KITCHEN not in line


def _openssl(folder: pathlib.Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=folder, check=True, capture_output=True)


def _certificate(folder: pathlib.Path, name: str) -> None:
    """A certificate NAME.pem for localhost, and NAME.key, signed by ca.pem."""
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    _openssl(folder, f"req -newkey rsa:2048 -nodes -keyout {name}.key -out {name}.csr -subj /CN={name}")
    signing = "-CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names"
    _openssl(folder, f"x509 -req -in {name}.csr -out {name}.pem {signing}")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make certificates")
    folder = tmp_path_factory.mktemp("authority")
    _openssl(folder, "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=ca")
    for name in ("first", "second", "robot"):
        _certificate(folder, name)
    for suffix in ("pem", "key"):
        shutil.copy(folder / f"first.{suffix}", folder / f"served.{suffix}")
    return folder


def _trusting(folder: pathlib.Path, *, robot: bool = True) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
    if robot:
        context.load_cert_chain(folder / "robot.pem", folder / "robot.key")
    return context


def _served_name(port: int, context: ssl.SSLContext) -> str:
    with connect_tls(port, context) as robot:
        subject: Any = robot.connection.socket.getpeercert()["subject"]  # type: ignore[attr-defined]
        return str(subject[0][0][1])


def connect_tls(port: int, context: ssl.SSLContext) -> Any:
    return connect_robot(port, ssl=context, scheme="wss")


def test_tls_guards_robots_and_page_and_renews_its_certificate(authority: pathlib.Path) -> None:
    files = {"--tls-cert": "served.pem", "--tls-key": "served.key", "--tls-client-ca": "ca.pem"}
    options = [word for option, name in files.items() for word in (option, str(authority / name))]
    with start_scripted_daemon(*options) as daemon:
        daemon.wait_ready()
        assert "listening on wss://" in daemon.log()
        trusting = _trusting(authority)
        with connect_tls(daemon.port, trusting) as robot:
            assert robot.infer(libero_observation())["actions"].shape == (10, 7)
            for number in range(4):
                stream = {"vlad/stream": True, "vlad/observation_id": number}
                robot.connection.send(pack({**libero_observation(), **stream}))
                # Before the first ping, whose answer would free what is held back.
                assert robot.receive(timeout_s=10)["observation_id"] == number
        for path, words in (("/", "<title>vlad</title>"), ("/healthz", "OK"), ("/status/data", '"ready"')):
            assert words in _https(daemon.port, path, trusting)
        # Without TLS, without a certificate of its own, without trust: nobody gets in.
        with pytest.raises((WebSocketException, OSError, EOFError)):
            open_connection(daemon.port)
        with pytest.raises((WebSocketException, OSError, EOFError)):
            connect_tls(daemon.port, _trusting(authority, robot=False)).__enter__()
        with pytest.raises(ssl.SSLCertVerificationError):
            connect_tls(daemon.port, ssl.create_default_context()).__enter__()
        old = ssl.create_default_context(cafile=str(authority / "ca.pem"))
        old.load_cert_chain(authority / "robot.pem", authority / "robot.key")
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        with pytest.raises((WebSocketException, OSError, EOFError)):
            connect_tls(daemon.port, old).__enter__()

        assert _served_name(daemon.port, trusting) == "first"
        for suffix in ("pem", "key"):
            shutil.copy(authority / f"second.{suffix}", authority / f"served.{suffix}")
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_for_log("and the certificate")
        assert _served_name(daemon.port, trusting) == "second"
        assert daemon.stop() == 0
        assert "Traceback" not in daemon.log()


def _https(port: int, path: str, context: ssl.SSLContext) -> str:
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
    )
    with opener.open(f"https://localhost:{port}{path}", timeout=10) as response:
        text: str = response.read().decode()
        return text


def test_certificates_that_cannot_be_used_are_told_before_anything_listens(authority: pathlib.Path) -> None:
    mismatch = ["--tls-cert", str(authority / "first.pem"), "--tls-key", str(authority / "second.key")]
    with start_scripted_daemon(*mismatch, listening=False) as daemon:
        assert daemon.process.wait(60) == 2
        assert "first.pem and --tls-key" in daemon.log()
        assert "listening" not in daemon.log()
        assert "Traceback" not in daemon.log()


def test_a_handshake_that_never_ends_is_ended(slow_handshake: socket.socket) -> None:
    slow_handshake.settimeout(gateway.OPEN_TIMEOUT_S + 5)
    answer = b"".join(iter(lambda: slow_handshake.recv(4096), b""))
    assert not answer.startswith(b"HTTP/1.1 101")
