"""The page at `/`: what a person sees in a real browser, who may see it, and that robots notice nothing."""

from __future__ import annotations

import http.client
import json
import re
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tests.support.browser import open_browser
from tests.support.daemon import Daemon, start_scripted_daemon
from tests.support.libero import libero_observation
from tests.support.robot import connect_robot
from vlad_server.status.page import DATA_PATH, SECURITY_HEADERS

KEY = "a-key-of-the-tests-0123456789"


@pytest.fixture(scope="module")
def daemon() -> Iterator[Daemon]:
    with start_scripted_daemon(infer_s=0.01) as daemon:
        daemon.wait_ready()
        yield daemon


def _get(
    port: int, path: str, headers: Mapping[str, str] | None = None
) -> tuple[int, http.client.HTTPMessage, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=dict(headers or {}))
        response = connection.getresponse()
        return response.status, response.headers, response.read()
    finally:
        connection.close()


def _data(port: int, robot: str | None = None, after: int = 0, **headers: str) -> Any:
    query = urllib.parse.urlencode({"after": after, **({} if robot is None else {"robot": robot})})
    status, _, body = _get(port, f"{DATA_PATH}?{query}", headers)
    assert status == 200, body
    return json.loads(body)


def test_a_get_gets_the_page_and_an_upgrade_the_policy(daemon: Daemon) -> None:
    status, headers, body = _get(daemon.port, "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    for name in re.findall(rb'(?:src|href)="(/[^"]+)"', body):
        assert _get(daemon.port, name.decode())[0] == 200
    with connect_robot(daemon.port, path="/") as robot:
        assert robot.infer(libero_observation())["actions"].shape == (10, 7)
    assert daemon.http("/", method="HEAD") == (200, "")
    assert daemon.http("/nowhere")[0] == 426


def test_nothing_comes_from_elsewhere_and_nothing_is_inline(daemon: Daemon) -> None:
    for path in ("/", "/status/page.js", "/status/page.css", DATA_PATH):
        _, headers, body = _get(daemon.port, path)
        for name, value in SECURITY_HEADERS.items():
            assert headers[name] == value
        assert b"http://" not in body
        assert b"https://" not in body
    page = _get(daemon.port, "/")[2].decode()
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\bstyle=|\bon\w+=|javascript:", page)
    script = _get(daemon.port, "/status/page.js")[2].decode()
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(", script
    )


def test_the_data_tells_of_robots_stages_frames_and_refusals(daemon: Daemon) -> None:
    with connect_robot(daemon.port) as robot:
        _data(daemon.port, "arm")
        observation = {**libero_observation(prompt="sleep 0.01"), "vlad/session": "arm"}
        reply = robot.infer(observation)
        robot.send({**observation, "prompt": 5, "vlad/observation_id": 1})
        assert robot.receive()["code"] == "invalid"
        data = _data(daemon.port, "arm")
    assert data["state"] == "ready"
    assert data["policy"]["family"] == "scripted"
    (connection,) = data["connections"]
    assert connection["sessions"] == ["arm"]
    assert connection["requests"] == 2
    row = dict(zip(data["samples"]["columns"], data["samples"]["rows"][-1], strict=True))
    assert row["robot"] == "arm"
    assert row["total"] > row["denoise"] > 9
    assert row["vision"] is None
    look = data["look"]
    assert look["prompt"] == "sleep 0.01"
    assert [frame["camera"] for frame in look["frames"]] == ["observation/image", "observation/wrist_image"]
    assert look["actions"][3] == pytest.approx(reply["actions"][3], rel=1e-4)
    assert data["refusals"][-1]["code"] == "invalid"
    assert "'prompt'" in data["refusals"][-1]["text"]
    assert _data(daemon.port, after=data["samples"]["last"])["samples"]["rows"] == []


@pytest.mark.parametrize("query", ["after=x", "after=-1", "after=" + "9" * 40, "robot=" + "x" * 300])
def test_a_question_that_makes_no_sense_is_refused(daemon: Daemon, query: str) -> None:
    assert _get(daemon.port, f"{DATA_PATH}?{query}")[0] == 400


def test_a_page_that_reaches_this_machine_by_another_name_learns_nothing(daemon: Daemon) -> None:
    assert _get(daemon.port, DATA_PATH, {"Host": "rebound.example"})[0] == 403
    for host in ("localhost", "127.0.0.1:8000", "[::1]:8000"):
        assert _get(daemon.port, DATA_PATH, {"Host": host})[0] == 200


def test_the_page_can_be_turned_off() -> None:
    with start_scripted_daemon("--no-status-page") as daemon:
        daemon.wait_ready()
        for path in ("/", "/status/page.js", DATA_PATH):
            assert daemon.http(path)[0] == 426
        assert "status page" not in daemon.log()


def _stream(port: int, stop: threading.Event, failures: list[BaseException]) -> None:
    try:
        with connect_robot(port) as robot:
            while not stop.wait(0.02):
                robot.infer({**libero_observation(), "vlad/session": "<b>arm</b>"})
    except BaseException as error:
        failures.append(error)


def test_a_person_sees_robots_strips_frames_and_the_chunk(daemon: Daemon) -> None:
    stop, failures = threading.Event(), list[BaseException]()
    robot = threading.Thread(target=_stream, args=(daemon.port, stop, failures))
    with open_browser() as browser:
        robot.start()
        try:
            for view in (
                {"viewport": {"width": 1240, "height": 900}},
                {"viewport": {"width": 390, "height": 800}, "is_mobile": True, "color_scheme": "dark"},
            ):
                _check_page(browser.new_context(**view), daemon.port)
        finally:
            stop.set()
            robot.join()
    assert not failures


def _check_page(context: Any, port: int) -> None:
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://127.0.0.1:{port}/")
    page.wait_for_selector("#actions figure:nth-child(7)")
    while page.evaluate("document.querySelector('#frames img').naturalWidth") != 224:
        page.wait_for_timeout(50)
    while int(page.evaluate("document.body.dataset.shown")) < 4:
        page.wait_for_timeout(50)
    assert page.inner_text("#state") == "ready"
    assert page.inner_text("#robots tr.chosen button") == "<b>arm</b>"
    assert "pick up the black bowl" in page.inner_text("#prompt")
    visible = page.locator("#strips figure:not([hidden])")
    assert visible.count() == 6  # the script has no vision, prefix, preprocessing or postprocessing
    drawn = (
        "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v)"
    )
    for canvas in page.locator("#strips figure:not([hidden]) canvas, #actions canvas").all():
        assert canvas.evaluate(drawn)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    assert complaints == []
    context.close()


def test_the_page_asks_for_the_key_and_never_puts_it_into_an_address_or_a_log() -> None:
    with start_scripted_daemon("--api-key", KEY) as daemon, open_browser() as browser:
        daemon.wait_ready()
        page, addresses = browser.new_page(), []
        page.on("request", lambda request: addresses.append(request.url))
        page.goto(f"http://127.0.0.1:{daemon.port}/")
        page.wait_for_selector("#key-form:not([hidden])")
        assert page.is_hidden("#main")
        for typed, outcome in (("wrong" * 5, "#key-form:not([hidden])"), (KEY, "#main:not([hidden])")):
            page.fill("#key", typed)
            page.click("#key-form button")
            page.wait_for_selector(outcome)
        page.reload()
        page.wait_for_selector("#main:not([hidden])")
        assert len(addresses) > 6
        assert all(KEY not in address for address in addresses)
        assert KEY not in daemon.log()
        assert KEY not in page.content()


def test_the_data_wants_the_key_and_the_health_paths_do_not() -> None:
    with start_scripted_daemon("--api-key", KEY) as daemon:
        daemon.wait_ready()
        for headers in ({}, {"Authorization": "Api-Key wrong"}, {"Authorization": KEY}):
            status, _, body = _get(daemon.port, DATA_PATH, headers)
            assert status == 401
            assert b"connections" not in body
        assert _get(daemon.port, f"{DATA_PATH}?key={KEY}")[0] == 401
        assert _data(daemon.port, Authorization=f"Bearer {KEY}")["state"] == "ready"
        assert (
            _get(daemon.port, DATA_PATH, {"Authorization": f"Api-Key {KEY}", "Host": "x.example"})[0] == 200
        )
        assert daemon.http("/healthz") == (200, "OK\n")
