"""The systemd unit: valid, and in step with the daemon."""

from __future__ import annotations

import configparser
import pathlib
import shutil
import subprocess

import pytest

from tests.support.promql import ROOT
from vlad_configs.serving import ServeConfig

UNIT = ROOT / "deploy" / "systemd" / "vlad.service"

needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")


def _service() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(UNIT)
    return parser["Service"]


def _verify(folder: pathlib.Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "vlad.service").write_text(text.replace("/opt/vlad/bin/serve_policy", "/bin/true"))
    command = ["systemd-analyze", "verify", str(folder / "vlad.service")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@needs_systemd
def test_systemd_accepts_the_unit(tmp_path: pathlib.Path) -> None:
    result = _verify(tmp_path, UNIT.read_text())
    assert (result.returncode, result.stderr) == (0, "")


@needs_systemd
def test_a_directive_that_systemd_does_not_know_is_noticed(tmp_path: pathlib.Path) -> None:
    assert "PrivateTemp" in _verify(tmp_path, UNIT.read_text().replace("PrivateTmp", "PrivateTemp")).stderr


def test_requests_in_flight_are_answered_before_the_kill() -> None:
    drain_s = ServeConfig(environment="LIBERO", checkpoint="demo").drain_s
    assert float(_service()["TimeoutStopSec"]) > drain_s
    # The worker must outlive SIGTERM, or it could not answer what it computes.
    assert _service()["KillMode"] == "mixed"


def test_a_wrong_configuration_is_not_tried_again() -> None:
    assert _service()["RestartPreventExitStatus"] == "2"
